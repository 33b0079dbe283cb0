"""Multiplication by one fixed number, such as 1/256 for 8-bit images.

Map       z = factor x
Inverse   x = z / factor
Log-det   D log|factor|
Gradient  dx = factor dz; of the inverse: dz = dx / factor; dlog_det has no effect
Source    preprocessing of NICE on images, arXiv:1410.8516, section 5.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from npflow.bijections.bijection import Bijection
from npflow.errors import ConfigurationError


class ScaleCache(NamedTuple):
    """The gradient of a product with a constant needs nothing."""


@dataclass(eq=False)
class Scale(Bijection):
    """z = factor x. Raises ConfigurationError if factor is zero or not finite."""

    factor: float

    def __post_init__(self):
        if self.factor == 0 or not math.isfinite(self.factor):
            raise ConfigurationError(f"factor is {self.factor}; expected a finite, nonzero number")

    def forward(self, x, context=None):
        return x * self.factor, self._log_det(x, 1), ScaleCache()

    def inverse(self, z, context=None):
        return z / self.factor, self._log_det(z, -1), ScaleCache()

    def backward(self, cache, dz, dlog_det):
        return dz * self.factor, None

    def inverse_backward(self, cache, dx, dlog_det):
        return dx / self.factor, None

    def _log_det(self, x, sign):
        log_det = sign * x[0].size * math.log(abs(self.factor))
        return self.backend.xp.full(len(x), log_det, x.dtype)
