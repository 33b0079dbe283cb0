"""Activation normalisation z = x e^s + b, channel by channel; formulas in reference/actnorm.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, DOUBLES, REAL, RESULT, Family, empty_like, per_column, per_element

_family = Family("actnorm")
_apply_kernel = _family.kernel(
    "actnorm_apply", x=ARRAY, log_scale=ARRAY, shift=ARRAY, sign=REAL, out=RESULT, log_det=RESULT,
    batch=np.int64, pixels=np.int64, c=np.int64,
)  # fmt: skip
_backward_kernel = _family.kernel(
    "actnorm_backward", dout=ARRAY, x=ARRAY, log_scale=ARRAY, sign=REAL, din=RESULT, parts=DOUBLES,
    rows=np.int64, c=np.int64,
)  # fmt: skip
_add_sums = _family.kernel(
    "actnorm_add_sums", parts=DOUBLES, dlog_det=ARRAY, log_scale=ARRAY, sign=REAL,
    dlog_scale=RESULT, dshift=RESULT, blocks=np.int64, batch=np.int64, pixels=np.int64, c=np.int64,
)  # fmt: skip


def actnorm_forward(x: ndarray, log_scale: ndarray, shift: ndarray) -> tuple[ndarray, ndarray]:
    """z = x exp(log_scale) + shift and log_det."""
    return _apply(x, log_scale, shift, 1)


def actnorm_inverse(z: ndarray, log_scale: ndarray, shift: ndarray) -> tuple[ndarray, ndarray]:
    """x = (z - shift) exp(-log_scale) and log_det."""
    return _apply(z, log_scale, shift, -1)


def actnorm_backward(
    dz: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    log_scale: ndarray,
    dlog_scale: ndarray,
    dshift: ndarray,
) -> ndarray:
    """Gradient of actnorm_forward: returns dx; dlog_scale and dshift are added to."""
    return _backward(dz, dlog_det, x, log_scale, 1, dlog_scale, dshift)


def actnorm_inverse_backward(
    dx: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    log_scale: ndarray,
    dlog_scale: ndarray,
    dshift: ndarray,
) -> ndarray:
    """Gradient of actnorm_inverse: returns dz; dlog_scale and dshift are added to."""
    return _backward(dx, dlog_det, x, log_scale, -1, dlog_scale, dshift)


def _sizes(x: ndarray) -> tuple[int, int, int]:
    """Batch, pixels and channels."""
    return len(x), int(np.prod(x.shape[1:-1])), x.shape[-1]


def _apply(x: ndarray, log_scale: ndarray, shift: ndarray, sign: int) -> tuple[ndarray, ndarray]:
    out, log_det = empty_like(x), cupy.empty(len(x), x.dtype)
    size = per_element(x.size)
    _apply_kernel(x.dtype, size, x, log_scale, shift, sign, out, log_det, *_sizes(x))
    return out, log_det


def _backward(
    dout: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    log_scale: ndarray,
    sign: int,
    dlog_scale: ndarray,
    dshift: ndarray,
) -> ndarray:
    batch, pixels, c = _sizes(x)
    rows, (tiles, block) = batch * pixels, per_column(c)
    blocks = min(-(-rows // (4 * block[1])), 256)  # a few rows a thread, and work for a whole GPU
    din, parts = empty_like(x), cupy.empty((blocks, 2, c))
    size = (*tiles, blocks), block
    _backward_kernel(x.dtype, size, dout, x, log_scale, sign, din, parts, rows, c)
    _add_sums(
        x.dtype, (tiles, block), parts, dlog_det, log_scale, sign, dlog_scale, dshift,
        blocks, batch, pixels, c,
    )  # fmt: skip
    return din
