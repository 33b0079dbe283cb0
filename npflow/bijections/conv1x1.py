"""Invertible 1x1 convolution: every pixel's channels times one learned matrix.

Map       z = x W at each of the P pixels                                             F1
Inverse   x = z W^-1
Log-det   P log|det W|, the same for every row                                        F2
Gradient  dx = dz W^T;  dW = sum_{B,P} x^T dz + P sum_B dlog_det W^-T                 B1, B2
          of the inverse:  dz = dx W^-T
          dW = -(sum_{B,P} x^T dx + P sum_B dlog_det I) W^-T
PLU       W = Q L (U + diag(sign e^s)), Q a permutation, L with ones on the diagonal  F3
          log|det W| = sum_c s_c;  dL = Q^T dW (U + diag)^T below the diagonal        F4, B3
          d(U + diag) = (Q L)^T dW: above the diagonal dU, on it ds sign e^-s         B4
Source    Glow, arXiv:1807.03039, section 3.2 and eq. 9-11

It replaces a fixed permutation of the channels by a learned one. "dense" factorises W once after
each update of the parameters, whatever the number of calls; "plu" reads its log-det off the
parameters and factorises only to invert. The cost of either beside the product with all pixels,
2 B P C^2 flops, is of order C^3. Cache: the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npflow import random
from npflow.backend import Array, get_backend
from npflow.bijections.actnorm import check_channels
from npflow.bijections.bijection import Bijection
from npflow.errors import ConfigurationError
from npflow.params import Initializer, Parameter, State

FORMS = ("dense", "plu")


class InvertibleConv1x1Cache(NamedTuple):
    x: Array  # (B, ..., C)


@dataclass(eq=False)
class InvertibleConv1x1(Bijection):
    """z = x W, pixel by pixel; W starts as a random orthogonal matrix, fixed by the seed.

    form : "dense": the parameter is W; "plu": the parameters are the factors of W = Q L U, with a
           fixed permutation Q and fixed signs of U's diagonal. Both start at the same W.

    Takes images (B, H, W, C) and vectors (B, C); raises ShapeError for another C. A W that is
    singular to the precision of the dtype has no inverse and, as "dense", no log-det: they are NaN,
    and the flow raises SingularMatrixError.
    """

    channels: int
    form: str = "dense"
    seed: int = 0

    def __post_init__(self):
        if self.form not in FORMS:
            raise ConfigurationError(f"form is {self.form!r}; choose one of {', '.join(FORMS)}")
        if self.channels < 1:
            raise ConfigurationError(f"channels is {self.channels}; expected 1 or more")
        c = self.channels
        weight = _orthogonal(c, self.seed)
        if self.form == "dense":
            self.weight = Parameter((c, c), _fixed(weight))
        else:
            permutation, lower, upper = _plu(weight)
            diagonal = np.diag(upper)
            below = np.tri(c, k=-1, dtype=bool)
            self.permutation = State((c, c), _fixed(permutation))
            self.sign = State((c,), _fixed(np.sign(diagonal)))
            self.lower = Parameter((c, c), _fixed(lower), below)
            self.upper = Parameter((c, c), _fixed(upper), below.T)
            self.log_s = Parameter((c,), _fixed(np.log(np.abs(diagonal))))

    def attached(self):
        # The inverse is a function of the weight and so no state; update_inverse keeps it current.
        xp, dtype, shape = self.backend.xp, self.backend.dtype, (self.channels, self.channels)
        self._factored = xp.full(shape, np.nan, dtype)
        self._inverse = xp.full(shape, np.nan, dtype)
        self._log_det = xp.full(1, np.nan, dtype)
        self._count = xp.zeros(1, np.int64)
        self._eye = xp.eye(self.channels, dtype=dtype)
        self._below = xp.tri(self.channels, k=-1, dtype=dtype)

    @property
    def factorizations(self) -> int:
        """How many times a weight was factorised so far."""
        return int(self._count[0])

    def forward(self, x, context=None):
        check_channels(self, x)
        z = self.backend.kernels.mix_forward(x, self._weight())  # F1
        return z, self._log_det_of(x), InvertibleConv1x1Cache(x)

    def inverse(self, z, context=None):
        check_channels(self, z)
        x = self.backend.kernels.mix_forward(z, self._updated_inverse())
        return x, -self._log_det_of(z), InvertibleConv1x1Cache(x)

    def backward(self, cache, dz, dlog_det):
        dweight = self.backend.xp.zeros_like(self._eye)
        dx = self.backend.kernels.mix_backward(dz, cache.x, self._weight(), dweight)  # B1
        self._add_gradients(dweight, _pixels(dz) * dlog_det.sum())
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        inverse, products = self._updated_inverse(), self.backend.xp.zeros_like(self._eye)
        # The kernel's gradient for its weight is that for W^-1 if it is given z; x is at hand, and
        # what is wanted is x^T dx.
        dz = self.backend.kernels.mix_backward(dx, cache.x, inverse, products)
        self._add_gradients(-products @ inverse.T, -_pixels(dx) * dlog_det.sum())
        return dz, None

    def singular(self):
        self._updated_inverse()
        if bool(self.backend.xp.isfinite(self._log_det[0])):
            return None
        return (
            f"has a {self.channels} x {self.channels} weight that is singular in "
            f"{self.backend.dtype}; lower the learning rate"
        )

    def _factors(self):
        """Q L and U + diag(sign e^s)."""
        lower = self.permutation.value @ (self.lower.value + self._eye)
        diagonal = self.sign.value * self.backend.xp.exp(self.log_s.value)
        return lower, self.upper.value + diagonal * self._eye

    def _weight(self):
        if self.form == "dense":
            return self.weight.value
        lower, upper = self._factors()
        return lower @ upper  # F3

    def _updated_inverse(self):
        """W^-1, and log|det W| in _log_det."""
        self.backend.kernels.update_inverse(
            self._weight(), self._factored, self._inverse, self._log_det, self._count
        )
        return self._inverse

    def _log_det_of(self, x):
        if self.form == "dense":
            self._updated_inverse()
            log_det = self._log_det[0]
        else:
            log_det = self.log_s.value.sum()  # F4
        return _pixels(x) * self.backend.xp.broadcast_to(log_det, len(x))  # F2

    def _add_gradients(self, dweight, dlog_det):
        """Add the gradients: dweight of the product's W, dlog_det of log|det W|."""
        if self.form == "dense":
            self.weight.grad += dweight + dlog_det * self._updated_inverse().T  # B2
            return
        lower, upper = self._factors()
        dlower = self.permutation.value.T @ dweight @ upper.T  # B3
        dupper = lower.T @ dweight  # B4
        self.lower.grad += dlower * self._below
        self.upper.grad += dupper * self._below.T
        self.log_s.grad += (dupper * upper).diagonal() + dlog_det


def _pixels(x: Array) -> int:
    """The number of pixels of each image in x (B, ..., C): 1 for vectors."""
    return x[0, ..., 0].size


def _fixed(values: np.ndarray) -> Initializer:
    """These values."""
    return lambda uniform, shape: values


def _orthogonal(n: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix (n, n), uniform over all of them (arXiv:math-ph/0609050)."""
    backend = get_backend("reference", np.float64)
    q, r = np.linalg.qr(random.normal(backend, (n, n), seed, random.Stream.CONV1X1, 0))
    return q * np.sign(np.diag(r))


def _plu(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, L, U with weight = Q L U, by Gaussian elimination with partial pivoting."""
    n = len(weight)
    order, lu = np.arange(n), weight.copy()
    for k in range(n):
        pivot = k + int(np.abs(lu[k:, k]).argmax())
        order[[k, pivot]], lu[[k, pivot]] = order[[pivot, k]], lu[[pivot, k]]
        lu[k + 1 :, k] /= lu[k, k]
        lu[k + 1 :, k + 1 :] -= np.outer(lu[k + 1 :, k], lu[k, k + 1 :])
    permutation = np.eye(n)[:, order]
    return permutation, np.tril(lu, -1) + np.eye(n), np.triu(lu)
