"""The planar flow: space is pushed along u_hat, by an amount that varies along w only.

Map       s = softplus(w.u + ln(e - 1)),  u_hat = u + (s - 1 - w.u) w / |w|^2     F1
          v = w.x + b,  h = tanh v                                          F2
          z = x + h u_hat                                                   F3
Inverse   x = z - h u_hat, where v solves v + (s - 1) tanh v = w.z + b
Log-det   log q,  q = 1 + (1 - h^2) w.u_hat = h^2 + (1 - h^2) s             F4
Gradient  dv = (1 - h^2) (dz.u_hat + dlog_det 2h (1 - s) / q)               B4, B3, B2
          dx = dz + dv w                                                    B3, B2
          dw = sum_B dv x, db = sum_B dv, and through F1 du and dw of
          du_hat = sum_B h dz, ds = sum_B dlog_det (1 - h^2) / q            B3, B4, B1
Source    arXiv:1505.05770, eq. 10-12 and appendix A.1

By F1 w.u_hat = s - 1 > -1, which is what makes the map invertible. Forward is the direction
x -> z. A posterior that samples through eq. 10 wants Inverse(Planar(...)).

Cost: 4 D flops a row forward, 8 D back; the inverse solves for one number a row. Cache: D + 1
numbers a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.params import Parameter, constant, uniform_fan_in

SHIFT = math.log(math.e - 1)  # softplus(SHIFT) = 1
ITERATIONS = 8  # of Newton: 6 reach rounding level for s from 1e-30 to 1e12, in both dtypes


class PlanarCache(NamedTuple):
    x: Array  # (B, D)
    h: Array  # (B,)


@dataclass(eq=False)
class Planar(Bijection):
    """z = x + u_hat tanh(w.x + b), the identity at first: u = 0.

    The softplus of the paper is shifted by ln(e - 1). Then u = 0 means u_hat = 0, and u_hat stays
    bounded as w goes to zero; the maps that can be reached are the same.
    """

    features: int

    def __post_init__(self):
        self.u = Parameter((self.features,), constant(0.0))
        self.w = Parameter((self.features,), uniform_fan_in(self.features))
        self.b = Parameter((1,), constant(0.0))

    def forward(self, x, context=None):
        u_hat, s = self._push()  # F1
        h = self.backend.xp.tanh(x @ self.w.value + self.b.value)  # F2
        z = x + h[:, None] * u_hat  # F3
        return z, self.backend.xp.log(_slope(h, s)), PlanarCache(x, h)  # F4

    def inverse(self, z, context=None):
        u_hat, s = self._push()
        h = self.backend.xp.tanh(solve(self.backend.xp, z @ self.w.value + self.b.value, s))
        x = z - h[:, None] * u_hat
        return x, -self.backend.xp.log(_slope(h, s)), PlanarCache(x, h)

    def backward(self, cache, dz, dlog_det):
        x, h = cache
        u, w = self.u.value, self.w.value
        u_hat, s = self._push()
        dlog_q = dlog_det / _slope(h, s)  # F4
        ds = (dlog_q * (1 - h * h)).sum()  # B4
        du_hat = h @ dz  # B3
        dv = (1 - h * h) * (dz @ u_hat + dlog_q * 2 * h * (1 - s))  # B4, B3, B2
        dx = dz + dv[:, None] * w  # B3, B2

        w_w, w_u = (w * w).sum(), (w * u).sum()
        factor = (s - 1 - w_u) / w_w  # B1: u_hat = u + factor w
        dfactor = (du_hat * w).sum() / w_w  # already divided by |w|^2, as all its uses are
        dw_u = (ds + dfactor) * -self.backend.xp.expm1(-s) - dfactor  # ds/d(w.u) = 1 - e^-s
        self.u.grad += du_hat + dw_u * w
        self.w.grad += dv @ x + factor * du_hat + dw_u * u - 2 * factor * dfactor * w
        self.b.grad += dv.sum()
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        h = cache.h
        u_hat, s = self._push()
        q = _slope(h, s)
        dv = (1 - h * h) / q * (dx @ u_hat + dlog_det / q * 2 * h * (1 - s))
        dz = dx - dv[:, None] * self.w.value
        self.backward(cache, -dz, -dlog_det)  # for the parameters, by docs/inverse.md
        return dz, None

    def _push(self):
        """u_hat (D,) and s = 1 + w.u_hat > 0."""
        u, w = self.u.value, self.w.value
        w_u = (w * u).sum()
        s = self.backend.xp.logaddexp(w_u + SHIFT, 0)
        return u + (s - 1 - w_u) / (w * w).sum() * w, s


def _slope(h, s):
    """q = 1 + (1 - h^2) w.u_hat, as a sum of positive terms: nothing cancels when s is small."""
    return h * h + (1 - h * h) * s


def solve(xp, c: Array, s: Array) -> Array:
    """The v of g(v) = v + (s - 1) tanh v = c, elementwise, for s > 0.

    g is odd and increasing, and for v > 0 it is convex if s < 1 and concave if not. So Newton's
    steps go towards the root and never past it, from the second on if g is convex, and from a start
    below the root if it is concave: no bracket is needed. The start is the root for s = 0 and small
    c, where g is flattest, or a bound on the root from tanh v <= v, 1 and 1 - e^-2v.
    """
    size = xp.abs(c)
    beyond = size - (s - 1)
    ratio = (s - 1) / (xp.maximum(-beyond, 0) + 1 + 0.5 * xp.log1p(s))
    below = xp.maximum(size / xp.maximum(s, 1), 0.5 * xp.log(xp.maximum(ratio, 1)))
    v = xp.where(s < 1, xp.cbrt(3 * size), xp.maximum(below, beyond))
    for _ in range(ITERATIONS):
        h = xp.tanh(v)
        v = v - (_less_tanh(xp, v, h) + s * h - size) / _slope(h, s)
    return xp.copysign(v, c)


def _less_tanh(xp, v, h):
    """v - tanh v for v >= 0 without cancellation: tanh v = v / (1 + f), a continued fraction."""
    v2 = xp.minimum(v, 0.5) ** 2
    f = v2 / (3 + v2 / (5 + v2 / (7 + v2 / (9 + v2 / (11 + v2 / 13)))))
    return xp.where(v < 0.5, v * f / (1 + f), v - h)
