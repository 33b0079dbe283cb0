"""Monotone rational-quadratic spline.

Map       widths, heights: softmaxes of raw ones cut the box [-bound, bound]^2 into K bins      F1
          edges x_k, y_k: cumulated sizes; s = height / width                               F2, F3
          the bin with x_k <= x < x_{k+1}; derivatives d0, d1 at its edges: softplus        F4, F5
          q = xi (s xi + d0 eta) / D,  xi = (x - x_k) / width,  eta = 1 - xi,
          D = s (xi^2 + eta^2) + (d0 + d1) xi eta                                               F6
          z = y_k + height q                                                                    F7
          log_det = sum_j log z',  z' = s^2 (d1 xi^2 + 2 s xi eta + d0 eta^2) / D^2             F8
          outside of the box z = x; at its ends the derivative is 1
Inverse   q = (z - y_k) / height; xi is the root of a quadratic equation, without cancellation
Log-det   sum_j log z'(x_j), and minus that for the inverse
Gradient  dx = dz z' + dlog_det (log z')'                                                       B7
          those of z and log z' in s, d0, d1, width, height                             B8, B6 - B3
          through the cumulated sums and softmaxes, and through the softplus            B2, B1, B5
          of the inverse: dz = (dx - dlog_det (log z')') / z', dparams = minus those at this dz
Source    Neural Spline Flows, arXiv:1906.04032, eq. 4-8 and appendix A

Cost: 2K + 2 exponentials an element, and again for the gradient: the cache is x and params.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.errors import ConfigurationError

# The smallest width, height (as a part of the box) and derivative, as in the kernels.
MINIMUM = 1e-3


class RationalQuadraticCache(NamedTuple):
    x: Array  # (B, d)
    params: Array  # (B, (3K - 1) d)


@dataclass(eq=False)
class RationalQuadratic(ElementwiseMap):
    """A spline with K bins; params = [raw widths K | raw heights K | raw derivatives K - 1] of all
    features, part by part, (B, (3K - 1) d).

    bins  : K, below 1000: no bin is less than a thousandth of the box wide or high
    bound : the box is [-bound, bound]; numbers outside pass unchanged

    Raises ConfigurationError for other bins or a bound that is not positive and finite.
    """

    features: int
    bins: int = 8
    bound: float = 3.0
    sequential = "rational_quadratic"

    def __post_init__(self):
        if not 1 <= self.bins < 1 / MINIMUM:
            raise ConfigurationError(
                f"bins is {self.bins}; expected 1 to {round(1 / MINIMUM) - 1}, usually 4 to 32"
            )
        if not 0 < self.bound < float("inf"):
            raise ConfigurationError(
                f"bound is {self.bound}; expected a positive number, such that most of the data "
                "lies between it and its negative"
            )
        self.parameters_per_feature = 3 * self.bins - 1

    def attached(self):
        xp = self.backend.xp
        self._constants = xp.full((1, self.features), self.bound, self.backend.dtype)

    def constants(self):
        return self._constants

    def forward(self, x, params):
        z, log_det = self.backend.kernels.rational_quadratic_forward(x, params, self.bound)
        return z, log_det, RationalQuadraticCache(x, params)

    def inverse(self, z, params):
        x, log_det = self.backend.kernels.rational_quadratic_inverse(z, params, self.bound)
        return x, log_det, RationalQuadraticCache(x, params)

    def backward(self, cache, dz, dlog_det):
        return self.backend.kernels.rational_quadratic_backward(
            dz, dlog_det, cache.x, cache.params, self.bound
        )

    def inverse_backward(self, cache, dx, dlog_det):
        return self.backend.kernels.rational_quadratic_inverse_backward(
            dx, dlog_det, cache.x, cache.params, self.bound
        )
