"""Activation normalisation: one scale and one shift a channel, set from data at first.

Map       z_c = x_c e^{s_c} + b_c at each of the P pixels                  F1
Inverse   x_c = (z_c - b_c) e^{-s_c}
Log-det   P sum_c s_c, the same for every row                              F2
Gradient  dx = dz e^s                                                      B1
          ds = sum_{B,P} dz x e^s + P sum_B dlog_det;  db = sum_{B,P} dz   B1, B2
          of the inverse:  dz = dx e^{-s};  db = -sum_{B,P} dz
          ds = -sum_{B,P} dx x - P sum_B dlog_det
Source    Glow, arXiv:1807.03039, section 3.1 and table 1

It does for a flow what batch normalisation does, but its statistics are parameters: rows do not
interact, so a batch may be of one image, and the density of a point never depends on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.errors import ShapeError
from npflow.params import Parameter, constant


class ActNormCache(NamedTuple):
    x: Array  # (B, ..., C)


@dataclass(eq=False)
class ActNorm(Bijection):
    """z = x exp(s) + b with one learned log-scale s and shift b a channel, zero at first.

    Takes images (B, H, W, C) and vectors (B, C); raises ShapeError for another C. `initialize` sets
    s and b so that every channel of z has mean 0 and deviation 1 over batch and pixels; it raises
    ShapeError if a channel of the batch does not vary.
    """

    channels: int

    def __post_init__(self):
        self.log_scale = Parameter((self.channels,), constant(0.0))
        self.shift = Parameter((self.channels,), constant(0.0))

    def forward(self, x, context=None):
        check_channels(self, x)
        z, log_det = self.backend.kernels.actnorm_forward(x, self.log_scale.value, self.shift.value)
        return z, log_det, ActNormCache(x)

    def inverse(self, z, context=None):
        check_channels(self, z)
        x, log_det = self.backend.kernels.actnorm_inverse(z, self.log_scale.value, self.shift.value)
        return x, log_det, ActNormCache(x)

    def backward(self, cache, dz, dlog_det):
        dx = self.backend.kernels.actnorm_backward(
            dz, dlog_det, cache.x, self.log_scale.value, self.log_scale.grad, self.shift.grad
        )
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        dz = self.backend.kernels.actnorm_inverse_backward(
            dx, dlog_det, cache.x, self.log_scale.value, self.log_scale.grad, self.shift.grad
        )
        return dz, None

    def initialize(self, x, context=None):
        check_channels(self, x)
        mean, var = self.backend.kernels.moments(x.reshape(-1, self.channels))
        if not (var > 0).all():
            raise ShapeError("a channel does not vary in the batch; initialize with more rows")
        self.log_scale.value[...] = -0.5 * self.backend.xp.log(var)
        self.shift.value[...] = -mean * self.backend.xp.exp(self.log_scale.value)
        return self.forward(x, context)[0]


def check_channels(layer: Bijection, x: Array) -> None:
    """Raise ShapeError unless the last axis of x (B, ..., C) has `layer.channels` channels."""
    channels = layer.channels  # type: ignore[attr-defined]
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ShapeError(
            f"{type(layer).__name__} got shape {x.shape}; expected (batch, ..., {channels}), "
            "channels last"
        )
