"""A bijection with its two directions exchanged.

Map       z = f^-1(x)
Inverse   x = f(z)
Log-det   that of f^-1
Gradient  backward is f's inverse_backward, and the other way round
Source    IAF as the inverse of MAF: arXiv:1705.07057, section 3.2
"""

from __future__ import annotations

from dataclasses import dataclass

from npflow.bijections.bijection import Bijection


@dataclass(eq=False)
class Inverse(Bijection):
    """`bijection` used the other way round."""

    bijection: Bijection

    def forward(self, x, context=None):
        return self.bijection.inverse(x, context)

    def inverse(self, z, context=None):
        return self.bijection.forward(z, context)

    def backward(self, cache, dz, dlog_det):
        return self.bijection.inverse_backward(cache, dz, dlog_det)

    def inverse_backward(self, cache, dx, dlog_det):
        return self.bijection.backward(cache, dx, dlog_det)
