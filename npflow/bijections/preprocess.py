"""From bounded data to the whole real line.

Map       p = lam + (1 - 2 lam) x / levels                   F1
          y = log p - log(1 - p)                             F2
Inverse   x = (sigmoid(y) - lam) levels / (1 - 2 lam)
Log-det   sum_j log((1 - 2 lam) / levels) - log p_j - log(1 - p_j)     F3
Gradient  slope = (1 - 2 lam) / levels
          dx = slope (dy + dlog_det (2p - 1)) / (p (1 - p))  B2, B3, B1
Source    RealNVP, arXiv:1605.08803, section 4.1; MAF, arXiv:1705.07057, section 4.3

With levels = 256 and x = v + u, v an 8-bit pixel and u ~ U[0, 1) (see `dequantize`), the flow's
density lives on [0, 256)^D, where -log p(x) / (D ln 2) is bits per dimension as it stands: every
constant (D log(1 - 2 lam), D log 256) is in the log-det and none is left to remember.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow import random
from npflow.backend import Array, Backend
from npflow.bijections.bijection import Bijection
from npflow.errors import ConfigurationError


class LogitCache(NamedTuple):
    y: Array  # (B, ...)


@dataclass(eq=False)
class Logit(Bijection):
    """y = logit(lam + (1 - 2 lam) x / levels) for x in [0, levels].

    lam keeps the ends finite: 1e-6 (MAF), 5e-6 (UvA), 0.05 (RealNVP). Log-likelihoods in y-space
    differ by thousands of nats between these; those of x do not, so npflow reports those.
    """

    lam: float = 1e-6
    levels: float = 256.0

    def __post_init__(self):
        if not 0 < self.lam < 0.5 or not self.levels > 0:
            raise ConfigurationError(
                f"lam = {self.lam}, levels = {self.levels}; expected 0 < lam < 0.5 and levels > 0"
            )

    def forward(self, x, context=None):
        y, log_det = self._apply(self.backend.kernels.logit_forward, x)
        return y, log_det, LogitCache(y)

    def inverse(self, z, context=None):
        x, log_det = self._apply(self.backend.kernels.logit_inverse, z)
        return x, log_det, LogitCache(z)

    def backward(self, cache, dz, dlog_det):
        return self._pull_back(self.backend.kernels.logit_backward, cache, dz, dlog_det), None

    def inverse_backward(self, cache, dx, dlog_det):
        kernel = self.backend.kernels.logit_inverse_backward
        return self._pull_back(kernel, cache, dx, dlog_det), None

    def _apply(self, kernel, x):
        y, log_det = kernel(x.reshape(len(x), -1), self.lam, self.levels)  # images as vectors
        return y.reshape(x.shape), log_det

    def _pull_back(self, kernel, cache, dy, dlog_det):
        rows = (len(dy), -1)
        dx = kernel(dy.reshape(rows), dlog_det, cache.y.reshape(rows), self.lam, self.levels)
        return dx.reshape(dy.shape)


def dequantize(
    backend: Backend,
    values: Array,
    seed: int,
    step: int,
    stream: random.Stream = random.Stream.DEQUANTIZE,
) -> Array:
    """x = v + u with u ~ U[0, 1) fresh for every (seed, stream, step).

    A density fitted to the integers v themselves can be made infinite. With uniform noise of width
    one, E_u[-log p(v + u)] bounds the code length -log P(v) from above (arXiv:1511.01844, eq. 3).
    """
    noise = random.uniform(backend, values.shape, seed, stream, step)
    return backend.xp.add(values, noise, dtype=backend.dtype)


def binarize(
    backend: Backend,
    values: Array,
    seed: int,
    step: int,
    stream: random.Stream = random.Stream.DEQUANTIZE,
) -> Array:
    """x in {0, 1}, 1 with probability v / 255, drawn anew for every (seed, stream, step).

    "Dynamic" binarisation of grey values. Salakhutdinov and Murray (2008) draw once and keep it:
    likelihoods of the two are not quite comparable.
    """
    noise = random.uniform(backend, values.shape, seed, stream, step)
    return (255 * noise < values).astype(backend.dtype)
