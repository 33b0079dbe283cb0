"""Diagonal scaling z = x e^s with one log-scale a feature; formulas in reference/diagonal.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, RESULT, Family, empty_like, per_column, per_row

_family = Family("diagonal")
_scale_kernel = _family.kernel(
    "diagonal_scale", x=ARRAY, log_scale=ARRAY, sign=REAL, out=RESULT, log_det=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_scale_backward_kernel = _family.kernel(
    "diagonal_scale_backward", dout=ARRAY, dlog_det=ARRAY, x=ARRAY, log_scale=ARRAY, sign=REAL,
    din=RESULT, dlog_scale=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip


def diagonal_forward(x: ndarray, log_scale: ndarray) -> tuple[ndarray, ndarray]:
    """z = x exp(log_scale) and log_det."""
    return _scale(x, log_scale, 1)


def diagonal_inverse(z: ndarray, log_scale: ndarray) -> tuple[ndarray, ndarray]:
    """x = z exp(-log_scale) and log_det."""
    return _scale(z, log_scale, -1)


def diagonal_backward(
    dz: ndarray, dlog_det: ndarray, x: ndarray, log_scale: ndarray, dlog_scale: ndarray
) -> ndarray:
    """Gradient of diagonal_forward: returns dx; dlog_scale is added to."""
    return _scale_backward(dz, dlog_det, x, log_scale, 1, dlog_scale)


def diagonal_inverse_backward(
    dx: ndarray, dlog_det: ndarray, x: ndarray, log_scale: ndarray, dlog_scale: ndarray
) -> ndarray:
    """Gradient of diagonal_inverse: returns dz; dlog_scale is added to."""
    return _scale_backward(dx, dlog_det, x, log_scale, -1, dlog_scale)


def _scale(x: ndarray, log_scale: ndarray, sign: int) -> tuple[ndarray, ndarray]:
    batch, d = x.shape
    out, log_det = empty_like(x), cupy.empty(batch, x.dtype)
    _scale_kernel(x.dtype, per_row(batch, d), x, log_scale, sign, out, log_det, batch, d)
    return out, log_det


def _scale_backward(
    dout: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    log_scale: ndarray,
    sign: int,
    dlog_scale: ndarray,
) -> ndarray:
    batch, d = x.shape
    din = empty_like(x)
    _scale_backward_kernel(
        x.dtype, per_column(d), dout, dlog_det, x, log_scale, sign, din, dlog_scale, batch, d
    )
    return din
