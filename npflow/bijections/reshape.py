"""The same numbers in another shape, such as an image as a vector.

Map       z = x, reshaped
Inverse   x = z, reshaped
Log-det   0
Gradient  dx = dz, reshaped; dlog_det has no effect
Source    the end of a multi-scale flow: RealNVP, arXiv:1605.08803, section 3.6
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.errors import ConfigurationError, ShapeError
from npflow.params import Component


class ReshapeCache(NamedTuple):
    """The gradient of a change of shape needs nothing."""


@dataclass(eq=False)
class Reshape(Bijection):
    """(B, *before) -> (B, *after).

    Raises ConfigurationError if the sizes differ; ShapeError for an x of another shape.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __post_init__(self):
        if math.prod(self.before) != math.prod(self.after):
            raise ConfigurationError(
                f"{self.before} has {math.prod(self.before)} numbers and {self.after} has "
                f"{math.prod(self.after)}; expected as many"
            )

    def forward(self, x, context=None):
        check_shape(self, x, self.before)
        log_det = self.backend.xp.zeros(len(x), x.dtype)
        return x.reshape(-1, *self.after), log_det, ReshapeCache()

    def inverse(self, z, context=None):
        check_shape(self, z, self.after)
        log_det = self.backend.xp.zeros(len(z), z.dtype)
        return z.reshape(-1, *self.before), log_det, ReshapeCache()

    def backward(self, cache, dz, dlog_det):
        return dz.reshape(-1, *self.before), None

    def inverse_backward(self, cache, dx, dlog_det):
        return dx.reshape(-1, *self.after), None


def check_shape(layer: Component, x: Array, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless x is (B, *shape): other rows of as many numbers would be mixed."""
    if x.shape[1:] != tuple(shape):
        expected = ", ".join(str(n) for n in shape)
        raise ShapeError(
            f"{type(layer).__name__} got shape {x.shape}; expected (batch, {expected})"
        )
