"""Diagonal scaling, the last layer of NICE.

Map       z_j = x_j e^{s_j}                                  F1
Inverse   x_j = z_j e^{-s_j}
Log-det   sum_j s_j, the same for every row                  F2
Gradient  dx = dz e^s                                        B1
          ds = sum_B dz x e^s + sum_B dlog_det               B1, B2
Source    NICE, arXiv:1410.8516, section 3.3. Additive couplings preserve volume, so without this
          layer no variable could be wider than another: the published likelihood is out of reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.errors import ShapeError
from npflow.params import Parameter, constant


class DiagonalCache(NamedTuple):
    x: Array  # (B, D)


@dataclass(eq=False)
class Diagonal(Bijection):
    """z = x exp(s) with one learned log-scale a feature, zero at first.

    `initialize` sets s so that every feature of z has deviation 1; it raises ShapeError if a
    feature of the batch does not vary.
    """

    features: int

    def __post_init__(self):
        self.log_scale = Parameter((self.features,), constant(0.0))

    def forward(self, x, context=None):
        z, log_det = self.backend.kernels.diagonal_forward(x, self.log_scale.value)
        return z, log_det, DiagonalCache(x)

    def inverse(self, z, context=None):
        x, log_det = self.backend.kernels.diagonal_inverse(z, self.log_scale.value)
        return x, log_det, DiagonalCache(x)

    def backward(self, cache, dz, dlog_det):
        dx = self.backend.kernels.diagonal_backward(
            dz, dlog_det, cache.x, self.log_scale.value, self.log_scale.grad
        )
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        dz = self.backend.kernels.diagonal_inverse_backward(
            dx, dlog_det, cache.x, self.log_scale.value, self.log_scale.grad
        )
        return dz, None

    def initialize(self, x, context=None):
        _, var = self.backend.kernels.moments(x)
        if not (var > 0).all():
            raise ShapeError("a feature does not vary in the batch; initialize with more rows")
        self.log_scale.value[...] = -0.5 * self.backend.xp.log(var)
        return self.forward(x, context)[0]
