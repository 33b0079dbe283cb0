"""Base distributions: log_prob in nats, its gradient, and samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from npflow import random
from npflow.backend import Array
from npflow.errors import ShapeError
from npflow.params import Component


class Distribution(Component):
    """A density over latents z (B, features)."""

    features: int

    def log_prob(self, z: Array) -> Array:
        """log p(z), (B,), nats."""
        raise NotImplementedError

    def backward(self, z: Array, dlog_prob: Array) -> Array:
        """dz (B, features), the gradient of log_prob."""
        raise NotImplementedError

    def sample(self, n: int, seed: int, step: int = 0, temperature: float = 1.0) -> Array:
        """n draws of the stream (seed, step), their deviations scaled by temperature."""
        raise NotImplementedError


@dataclass(eq=False)
class StandardNormal(Distribution):
    """N(0, I): log p(z) = -1/2 |z|^2 - D/2 log(2 pi);  d log p / dz = -z."""

    features: int

    def log_prob(self, z):
        return self.backend.kernels.normal_log_prob(z)

    def backward(self, z, dlog_prob):
        return self.backend.kernels.normal_log_prob_backward(z, dlog_prob)

    def sample(self, n, seed, step=0, temperature=1.0):
        shape = (n, self.features)
        return temperature * random.normal(self.backend, shape, seed, random.Stream.SAMPLE, step)


@dataclass(eq=False)
class Logistic(Distribution):
    """Independent standard logistics: log p(z) = -sum_j log(1 + e^z_j) + log(1 + e^-z_j).

    d log p / dz = -tanh(z / 2). The prior of NICE on MNIST (arXiv:1410.8516, section 5.1).
    """

    features: int

    def log_prob(self, z):
        return self.backend.kernels.logistic_log_prob(z)

    def backward(self, z, dlog_prob):
        return self.backend.kernels.logistic_log_prob_backward(z, dlog_prob)

    def sample(self, n, seed, step=0, temperature=1.0):
        xp = self.backend.xp
        shape = (n, self.features)
        u = random.uniform(self.backend, shape, seed, random.Stream.SAMPLE, step)
        smallest = float(xp.finfo(u.dtype).eps) / 2  # u may be 0, whose logit is not finite
        u = xp.maximum(u, smallest)
        return temperature * (xp.log(u) - xp.log1p(-u))


@dataclass(eq=False)
class DiagonalNormal(Distribution):
    """N(mean, diag(scale^2)) with given, fixed mean and scale, one number or one a feature.

    log p(z) = log N((z - mean) / scale; 0, I) - sum_j log scale_j.
    Raises ShapeError if mean or scale does not fit, or a scale is not positive.
    """

    features: int
    mean: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self):
        for name, value in (("mean", self.mean), ("scale", self.scale)):
            if isinstance(value, tuple) and len(value) != self.features:
                raise ShapeError(f"{name} has {len(value)} numbers for {self.features} features")
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.features
        if not all(0 < s < math.inf for s in scales):
            raise ShapeError("every scale must be positive and finite")
        self._log_scale_sum = sum(math.log(s) for s in scales)

    def attached(self):
        self._mean = self.backend.array(self.mean)
        self._scale = self.backend.array(self.scale)

    def log_prob(self, z):
        standard = (z - self._mean) / self._scale
        return self.backend.kernels.normal_log_prob(standard) - self._log_scale_sum

    def backward(self, z, dlog_prob):
        standard = (z - self._mean) / self._scale
        return self.backend.kernels.normal_log_prob_backward(standard, dlog_prob) / self._scale

    def sample(self, n, seed, step=0, temperature=1.0):
        shape = (n, self.features)
        draw = random.normal(self.backend, shape, seed, random.Stream.SAMPLE, step)
        return self._mean + temperature * self._scale * draw
