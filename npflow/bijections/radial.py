"""The radial flow: space is drawn towards a centre x0, or pushed away from it.

Map       d = x - x0,  r = |d|                                              F1
          alpha = softplus(raw_alpha),  s = softplus(beta),  beta_hat = s - alpha     F2
          z = x + beta_hat d / (alpha + r) = x0 + g d,  g = (s + r) / (alpha + r)     F3
Inverse   x = x0 + (z - x0) / g, where r is the positive root of
          r^2 + (s - y) r - alpha y = 0,  y = |z - x0|
Log-det   (D - 1) log g + log q,  q = (r^2 + 2 alpha r + alpha s) / (alpha + r)^2     F4
Gradient  dg = dz.d + dlog_det (D - 1) / g                                  B4, B3
          dr = dg (alpha - s) / (alpha + r)^2 + dlog_det d(log q)/dr        B4, B3
          dx = g dz + dr d / r,  dx0 = sum_B dz - dx                        B3, B1
          dalpha, ds: the same with the derivatives of g and log q in alpha and s
Source    arXiv:1505.05770, eq. 13-14 and appendix A.2

g is how far the map stretches across the rays from x0, q = d(g r)/dr along them. As alpha and s are
positive, both are. Forward is the direction x -> z. A posterior that samples through eq. 14 wants
Inverse(Radial(...)).

Cost: 5 D flops a row forward, 9 D back. Cache: D + 1 numbers a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.params import Parameter, constant, uniform_fan_in


class RadialCache(NamedTuple):
    x: Array  # (B, D)
    r: Array  # (B,)


@dataclass(eq=False)
class Radial(Bijection):
    """z = x + beta_hat (x - x0) / (alpha + |x - x0|), the identity at first: beta_hat = 0.

    The centre starts in U(-1, 1): among standardized data, and elsewhere in each layer.
    """

    features: int

    def __post_init__(self):
        self.x0 = Parameter((self.features,), uniform_fan_in(1))
        self.raw_alpha = Parameter((1,), constant(0.0))
        self.beta = Parameter((1,), constant(0.0))

    def forward(self, x, context=None):
        d, r = self._polar(x)  # F1
        alpha, s = self._scales()  # F2
        z = self.x0.value + ((s + r) / (alpha + r))[:, None] * d  # F3
        return z, self._log_det(r), RadialCache(x, r)

    def inverse(self, z, context=None):
        xp = self.backend.xp
        d, y = self._polar(z)
        alpha, s = self._scales()
        # The positive root, in that one of its two forms in which nothing cancels.
        twice = abs(y - s) + xp.hypot(y - s, 2 * xp.sqrt(alpha * y))
        r = xp.where(y < s, 2 * alpha * y / twice, twice / 2)
        x = self.x0.value + ((alpha + r) / (s + r))[:, None] * d
        return x, -self._log_det(r), RadialCache(x, r)

    def backward(self, cache, dz, dlog_det):
        xp = self.backend.xp
        d, ray = self._rays(cache)
        alpha, s = self._scales()
        g, q = _stretch(cache.r, alpha, s)
        width = alpha + cache.r
        dlog_q = dlog_det / (width * width * q)  # over the numerator of q, as its derivatives are
        dg = (dz * d).sum(axis=1) + dlog_det * (d.shape[1] - 1) / g  # B4, B3
        dr = (alpha - s) / width * (dg / width + dlog_q * 2 * alpha)  # B4, B3
        dx = g[:, None] * dz + dr[:, None] * ray  # B3, B1
        ds = dg / width + dlog_q * alpha  # B4, B3
        dalpha = -dg * g / width + dlog_q * (2 * cache.r + s) - 2 * dlog_det / width  # B4, B3
        self.x0.grad += (dz - dx).sum(axis=0)  # B3, B1
        self.raw_alpha.grad += dalpha.sum() * -xp.expm1(-alpha)  # B2: softplus' = 1 - e^-softplus
        self.beta.grad += ds.sum() * -xp.expm1(-s)  # B2
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        d, ray = self._rays(cache)
        alpha, s = self._scales()
        g, q = _stretch(cache.r, alpha, s)
        width = alpha + cache.r
        dlog_g = (d.shape[1] - 1) / (g * width)
        dlog_det_dr = (alpha - s) / width * (dlog_g + 2 * alpha / (width * width * q))
        # J = g I + (q - g) ray ray^T: its inverse divides by q along the ray, by g across it.
        along = (dx * ray).sum(axis=1)
        dr = along / q - along / g - dlog_det * dlog_det_dr / q
        dz = dx / g[:, None] + dr[:, None] * ray
        self.backward(cache, -dz, -dlog_det)  # for the parameters, by docs/inverse.md
        return dz, None

    def _scales(self):
        """alpha and s = alpha + beta_hat, (1,) and positive."""
        xp = self.backend.xp
        return xp.logaddexp(self.raw_alpha.value, 0), xp.logaddexp(self.beta.value, 0)

    def _polar(self, x):
        """x - x0 and its length."""
        d = x - self.x0.value
        return d, self.backend.xp.sqrt((d * d).sum(axis=1))

    def _rays(self, cache):
        """d and d / r, which is set to zero at the centre: log_det has a kink there, z has none."""
        xp = self.backend.xp
        d = cache.x - self.x0.value
        return d, d / xp.maximum(cache.r, xp.finfo(cache.r.dtype).tiny)[:, None]

    def _log_det(self, r):
        xp = self.backend.xp
        g, q = _stretch(r, *self._scales())
        return (self.features - 1) * xp.log(g) + xp.log(q)  # F4


def _stretch(r, alpha, s):
    """g across the rays and q along them, (B,): ratios of sums of positive terms."""
    width = alpha + r
    return (s + r) / width, (r * (r + 2 * alpha) + alpha * s) / (width * width)
