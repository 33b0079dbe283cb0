"""The affine map z = x e^s + t with s = bound * tanh(raw); formulas in reference/affine.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, RESULT, Family, empty_like, per_column, per_row

_family = Family("affine")
_forward = _family.kernel(
    "affine_forward", x=ARRAY, params=ARRAY, bound=ARRAY, z=RESULT, log_det=RESULT, tanh=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse = _family.kernel(
    "affine_inverse", z=ARRAY, params=ARRAY, bound=ARRAY, x=RESULT, log_det=RESULT, tanh=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "affine_backward", dz=ARRAY, dlog_det=ARRAY, x=ARRAY, tanh=ARRAY, bound=ARRAY, dx=RESULT,
    dparams=RESULT, dbound=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse_backward = _family.kernel(
    "affine_inverse_backward", dx=ARRAY, dlog_det=ARRAY, x=ARRAY, tanh=ARRAY, bound=ARRAY,
    dz=RESULT, dparams=RESULT, dbound=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip


def affine_forward(x: ndarray, params: ndarray, bound: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """z = x exp(s) + shift and log_det; returns z, log_det, tanh(raw)."""
    batch, d = x.shape
    z, log_det, tanh = empty_like(x), cupy.empty(batch, x.dtype), empty_like(x)
    _forward(x.dtype, per_row(batch, d), x, params, bound, z, log_det, tanh, batch, d)
    return z, log_det, tanh


def affine_inverse(z: ndarray, params: ndarray, bound: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """x = (z - shift) exp(-s) and log_det; returns x, log_det, tanh(raw)."""
    batch, d = z.shape
    x, log_det, tanh = empty_like(z), cupy.empty(batch, z.dtype), empty_like(z)
    _inverse(z.dtype, per_row(batch, d), z, params, bound, x, log_det, tanh, batch, d)
    return x, log_det, tanh


def affine_backward(
    dz: ndarray, dlog_det: ndarray, x: ndarray, tanh: ndarray, bound: ndarray, dbound: ndarray
) -> tuple[ndarray, ndarray]:
    """Gradient of affine_forward: returns dx, dparams; dbound is added to."""
    batch, d = x.shape
    dx, dparams = empty_like(x), cupy.empty((batch, 2 * d), x.dtype)
    _backward(x.dtype, per_column(d), dz, dlog_det, x, tanh, bound, dx, dparams, dbound, batch, d)
    return dx, dparams


def affine_inverse_backward(
    dx: ndarray, dlog_det: ndarray, x: ndarray, tanh: ndarray, bound: ndarray, dbound: ndarray
) -> tuple[ndarray, ndarray]:
    """Gradient of affine_inverse: returns dz, dparams; dbound is added to."""
    batch, d = x.shape
    dz, dparams = empty_like(x), cupy.empty((batch, 2 * d), x.dtype)
    _inverse_backward(
        x.dtype, per_column(d), dx, dlog_det, x, tanh, bound, dz, dparams, dbound, batch, d
    )
    return dz, dparams
