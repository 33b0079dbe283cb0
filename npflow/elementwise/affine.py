"""Affine map with a bounded log-scale.

Map       t = tanh(raw)                  F1
          s = bound * t                  F2
          z = x e^s + shift              F3
          log_det = sum_j s_j            F4
Inverse   x = (z - shift) e^-s
Log-det   sum_j s_j, and minus that for the inverse
Gradient  dx = dz e^s,  dshift = dz                        B3 (of F3)
          ds = dz x e^s + dlog_det                         B4, B3
          dbound = sum_B ds t                              B2
          draw = ds bound (1 - t^2)                        B2, B1
Source    RealNVP, arXiv:1605.08803, eq. 7-8, and section 4.1 for the learned factor times tanh

`bound` is one number a feature: learned (RealNVP), or fixed at 1 (the plain tanh of many codes).
Without it, a few large log-scales overflow early in training. Cost: two exponentials an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.params import Parameter, State, constant


class AffineCache(NamedTuple):
    x: Array  # (B, d)
    tanh: Array  # (B, d)


@dataclass(eq=False)
class Affine(ElementwiseMap):
    """z = x exp(bound tanh(raw)) + shift; params = [shift | raw] (B, 2d).

    bound       : the largest |log-scale|, or its first value if learned
    learn_bound : whether the bound is a parameter, one a feature
    """

    features: int
    bound: float = 1.0
    learn_bound: bool = True
    parameters_per_feature = 2
    sequential = "affine"

    def __post_init__(self):
        kind = Parameter if self.learn_bound else State
        self.bounds = kind((self.features,), constant(self.bound))

    def attached(self):
        fixed = self.backend.xp.zeros(self.features, self.backend.dtype)
        bounds = self.bounds  # the gradient of fixed ones is never read
        self._dbounds = bounds.grad if isinstance(bounds, Parameter) else fixed

    def constants(self):
        return self.bounds.value[None, :]

    def forward(self, x, params):
        z, log_det, tanh = self.backend.kernels.affine_forward(x, params, self.bounds.value)
        return z, log_det, AffineCache(x, tanh)

    def inverse(self, z, params):
        x, log_det, tanh = self.backend.kernels.affine_inverse(z, params, self.bounds.value)
        return x, log_det, AffineCache(x, tanh)

    def backward(self, cache, dz, dlog_det):
        return self.backend.kernels.affine_backward(
            dz, dlog_det, cache.x, cache.tanh, self.bounds.value, self._dbounds
        )

    def inverse_backward(self, cache, dx, dlog_det):
        return self.backend.kernels.affine_inverse_backward(
            dx, dlog_det, cache.x, cache.tanh, self.bounds.value, self._dbounds
        )
