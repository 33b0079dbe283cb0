"""Additive map.

Map       z = x + shift
Inverse   x = z - shift
Log-det   0: volume is preserved (the determinant is 1, a number, not a matrix)
Gradient  dx = dz, dshift = dz; of the inverse: dz = dx, dshift = -dx; dlog_det has no effect
Source    NICE, arXiv:1410.8516, section 3.2 ("additive coupling law")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.elementwise.elementwise import ElementwiseMap


class AdditiveCache(NamedTuple):
    """The gradient of a sum needs nothing."""


@dataclass(eq=False)
class Additive(ElementwiseMap):
    """z = x + shift; params = shift (B, d)."""

    features: int
    parameters_per_feature = 1
    sequential = "additive"

    def constants(self):
        return self.backend.xp.zeros((0, self.features), self.backend.dtype)

    def forward(self, x, params):
        return x + params, self.backend.xp.zeros(len(x), x.dtype), AdditiveCache()

    def inverse(self, z, params):
        return z - params, self.backend.xp.zeros(len(z), z.dtype), AdditiveCache()

    def backward(self, cache, dz, dlog_det):
        return dz, dz.copy()  # the conditioner may overwrite its gradient

    def inverse_backward(self, cache, dx, dlog_det):
        return dx, -dx
