"""Base distributions: log_prob in nats, its gradient, and samples.

Most have no parameters. `Autoregressive` is a model of its own: with an empty chain it is MADE
(arXiv:1502.03509), under a MAF it makes "MAF MoG" (arXiv:1705.07057, section 4.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npflow import random
from npflow.backend import Array, Backend
from npflow.errors import ConfigurationError, DomainError, ShapeError
from npflow.networks.made import MADE, MADECache
from npflow.params import Component


class Distribution(Component):
    """A density over latents z (B, features), perhaps given a context (B, C)."""

    features: int

    def log_prob(self, z: Array, context: Array | None = None) -> Array:
        """log p(z), (B,), nats. Raises DomainError if z has values without a density."""
        self.check(z)
        return self.forward(z, context)[0]

    def check(self, z: Array) -> None:
        """Raise DomainError if z has values without a density."""

    def forward(self, z: Array, context: Array | None = None) -> tuple[Array, Any]:
        """log p(z) and the cache that its gradient needs."""
        raise NotImplementedError

    def backward(self, cache: Any, dlog_prob: Array) -> tuple[Array, Array | None]:
        """dz (B, features) and dcontext; gradients of parameters are added to `parameter.grad`."""
        raise NotImplementedError

    def sample(
        self,
        n: int,
        seed: int,
        step: int = 0,
        temperature: float = 1.0,
        context: Array | None = None,
    ) -> Array:
        """n draws of the stream (seed, step), their deviations scaled by temperature."""
        raise NotImplementedError


@dataclass(eq=False)
class StandardNormal(Distribution):
    """N(0, I): log p(z) = -1/2 |z|^2 - D/2 log(2 pi);  d log p / dz = -z."""

    features: int

    def forward(self, z, context=None):
        return self.backend.kernels.normal_log_prob(z), z

    def backward(self, cache, dlog_prob):
        return self.backend.kernels.normal_log_prob_backward(cache, dlog_prob), None

    def sample(self, n, seed, step=0, temperature=1.0, context=None):
        shape = (n, self.features)
        return temperature * random.normal(self.backend, shape, seed, random.Stream.SAMPLE, step)


@dataclass(eq=False)
class Logistic(Distribution):
    """Independent standard logistics: log p(z) = -sum_j log(1 + e^z_j) + log(1 + e^-z_j).

    d log p / dz = -tanh(z / 2). The prior of NICE on MNIST (arXiv:1410.8516, section 5.1).
    """

    features: int

    def forward(self, z, context=None):
        return self.backend.kernels.logistic_log_prob(z), z

    def backward(self, cache, dlog_prob):
        return self.backend.kernels.logistic_log_prob_backward(cache, dlog_prob), None

    def sample(self, n, seed, step=0, temperature=1.0, context=None):
        return temperature * _logistic_noise(self.backend, (n, self.features), seed, step)


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

    def forward(self, z, context=None):
        standard = (z - self._mean) / self._scale
        return self.backend.kernels.normal_log_prob(standard) - self._log_scale_sum, standard

    def backward(self, cache, dlog_prob):
        dstandard = self.backend.kernels.normal_log_prob_backward(cache, dlog_prob)
        return dstandard / self._scale, None

    def sample(self, n, seed, step=0, temperature=1.0, context=None):
        shape = (n, self.features)
        draw = random.normal(self.backend, shape, seed, random.Stream.SAMPLE, step)
        return self._mean + temperature * self._scale * draw


class Conditional(Component):
    """The distribution of one feature given its parameters, for `Autoregressive`."""

    parameters_per_feature: int
    sequential: ClassVar[str]  # its name in the kernel that samples feature by feature

    def start(self) -> np.ndarray:
        """The parameters of a feature in a new model, (parameters_per_feature,)."""
        return np.zeros(self.parameters_per_feature)

    def log_prob(self, x: Array, params: Array) -> Array:
        """log p(x; params), (B,), summed over the features; params lie in parts."""
        raise NotImplementedError

    def backward(self, x: Array, params: Array, dlog_prob: Array) -> tuple[Array, Array]:
        """dx and dparams."""
        raise NotImplementedError

    def noise(self, shape: tuple[int, int], seed: int, step: int, temperature: float) -> Array:
        """What the kernel makes samples (n, D) of: (n, Q D)."""
        raise NotImplementedError

    def check(self, x: Array) -> None:
        """Raise DomainError if x has values without a density."""


@dataclass(eq=False)
class Bernoulli(Conditional):
    """x in {0, 1}: log p = x l - log(1 + e^l), l the logit; dl = x - sigmoid(l).

    A sample is 1 where logistic noise, scaled by the temperature, is below l: then
    P(x = 1) = sigmoid(l / temperature).
    """

    parameters_per_feature = 1
    sequential = "bernoulli"

    def log_prob(self, x, params):
        return self.backend.kernels.bernoulli_log_prob(x, params)

    def backward(self, x, params, dlog_prob):
        dparams = self.backend.kernels.bernoulli_backward(x, params, dlog_prob)
        return dlog_prob[:, None] * params, dparams

    def noise(self, shape, seed, step, temperature):
        return temperature * _logistic_noise(self.backend, shape, seed, step)

    def check(self, x):
        if not ((x == 0) | (x == 1)).all():
            raise DomainError(
                "a Bernoulli density is over 0 and 1; the data has other values. Binarize it "
                "first: npflow.binarize(backend, pixels, seed, step)"
            )


@dataclass(eq=False)
class GaussianMixture(Conditional):
    """p(x) = sum_k softmax(logits)_k N(x; mean_k, e^(2 log_scale_k)); params in 3 K parts.

    The temperature scales the deviation from the mean of the component drawn.
    """

    components: int = 10
    sequential = "mixture"

    def __post_init__(self):
        if self.components < 1:
            raise ConfigurationError(f"components is {self.components}; expected 1 or more")
        self.parameters_per_feature = 3 * self.components

    def start(self):
        """Components side by side over [-2, 2]: equal ones would stay equal."""
        k = self.components
        means = 4 * (np.arange(k) + 0.5) / k - 2
        return np.concatenate([np.zeros(k), means, np.full(k, math.log(2 / k))])

    def log_prob(self, x, params):
        return self.backend.kernels.mixture_log_prob(x, params)

    def backward(self, x, params, dlog_prob):
        return self.backend.kernels.mixture_backward(x, params, dlog_prob)

    def noise(self, shape, seed, step, temperature):
        normal = random.normal(self.backend, shape, seed, random.Stream.SAMPLE, step)
        which = random.uniform(self.backend, shape, seed, random.Stream.COMPONENT, step)
        return self.backend.xp.concatenate([temperature * normal, which], axis=1)


class AutoregressiveCache(NamedTuple):
    z: Array  # (B, D)
    params: Array  # (B, P D)
    network: MADECache


@dataclass(eq=False)
class Autoregressive(Distribution):
    """p(z) = prod_i p(z_i | z_{<i}): a MADE computes the parameters of each `conditional`.

    Sampling takes one pass through the network (docs/made.md).
    Raises ConfigurationError if network and conditional do not fit together.
    """

    conditional: Conditional
    network: MADE

    def __post_init__(self):
        self.features = self.network.features
        wanted = self.conditional.parameters_per_feature
        if self.network.parameters_per_feature != wanted:
            raise ConfigurationError(
                f"the network gives {self.network.parameters_per_feature} parameters a feature; "
                f"{type(self.conditional).__name__} needs {wanted}"
            )
        if self.network.zero_last:
            start = np.repeat(self.conditional.start(), self.features)
            self.network.biases[-1].initial = lambda uniform, shape: start

    def attached(self):
        self._constants = self.backend.xp.zeros((0, self.features), self.backend.dtype)

    def check(self, z):
        self.conditional.check(z)

    def forward(self, z, context=None):
        params, network_cache = self.network.forward(z, context)
        log_prob = self.conditional.log_prob(z, params)
        return log_prob, AutoregressiveCache(z, params, network_cache)

    def backward(self, cache, dlog_prob):
        dz, dparams = self.conditional.backward(cache.z, cache.params, dlog_prob)
        dz_network, dcontext = self.network.backward(cache.network, dparams)
        return dz + dz_network, dcontext

    def sample(self, n, seed, step=0, temperature=1.0, context=None):
        noise = self.conditional.noise((n, self.features), seed, step, temperature)
        return self.network.inverse(noise, context, self.conditional.sequential, self._constants)[0]


def _logistic_noise(backend: Backend, shape: tuple[int, ...], seed: int, step: int) -> Array:
    xp = backend.xp
    u = random.uniform(backend, shape, seed, random.Stream.SAMPLE, step)
    u = xp.maximum(u, float(xp.finfo(u.dtype).eps) / 2)  # u may be 0, whose logit is not finite
    return xp.log(u) - xp.log1p(-u)
