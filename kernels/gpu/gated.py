"""The pieces of a gated residual network; formulas in reference/gated.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import (
    ARRAY,
    DOUBLES,
    REAL,
    RESULT,
    Family,
    Launch,
    empty_like,
    per_column,
    per_element,
)

_family = Family("gated")
_concat_elu_forward = _family.kernel(
    "concat_elu_forward", x=ARRAY, y=RESULT, n=np.int64, c=np.int64
)  # fmt: skip
_concat_elu_backward = _family.kernel(
    "concat_elu_backward", dy=ARRAY, y=ARRAY, dx=RESULT, n=np.int64, c=np.int64
)  # fmt: skip
_forward = _family.kernel(
    "gated_norm_forward", h=ARRAY, params=ARRAY, gain=ARRAY, shift=ARRAY, epsilon=REAL, y=RESULT,
    rows=np.int64, c=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "gated_norm_backward", dy=ARRAY, h=ARRAY, params=ARRAY, gain=ARRAY, epsilon=REAL, dh=RESULT,
    dparams=RESULT, s_hat=RESULT, rows=np.int64, c=np.int64,
)  # fmt: skip
_sums = _family.kernel(
    "gated_norm_sums", dy=ARRAY, s_hat=ARRAY, parts=DOUBLES, rows=np.int64, c=np.int64
)  # fmt: skip
_add_sums = _family.kernel(
    "gated_norm_add_sums", parts=DOUBLES, dgain=RESULT, dshift=RESULT, blocks=np.int64, c=np.int64
)  # fmt: skip


def concat_elu_forward(x: ndarray) -> ndarray:
    """y = [elu(x) | elu(-x)]."""
    c = x.shape[-1]
    y = cupy.empty((*x.shape[:-1], 2 * c), x.dtype)
    _concat_elu_forward(x.dtype, per_element(x.size), x, y, x.size, c)
    return y


def concat_elu_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of concat_elu_forward from its output y: returns dx."""
    c = y.shape[-1] // 2
    dx = cupy.empty((*y.shape[:-1], c), y.dtype)
    _concat_elu_backward(y.dtype, per_element(dx.size), dy, y, dx, dx.size, c)
    return dx


def gated_norm_forward(
    h: ndarray, params: ndarray, gain: ndarray, shift: ndarray, epsilon: float
) -> ndarray:
    """y = gain s_hat + shift, where s_hat is s = h + v sigmoid(g) normalised over the channels."""
    rows, c = _shape(h)
    y = empty_like(h)
    _forward(h.dtype, _per_warp(rows), h, params, gain, shift, epsilon, y, rows, c)
    return y


def gated_norm_backward(
    dy: ndarray,
    h: ndarray,
    params: ndarray,
    gain: ndarray,
    epsilon: float,
    dgain: ndarray,
    dshift: ndarray,
) -> tuple[ndarray, ndarray]:
    """Gradient of gated_norm_forward: returns dh and dparams; dgain and dshift are added to."""
    rows, c = _shape(h)
    dh, dparams, s_hat = empty_like(h), empty_like(params), empty_like(h)
    args = dy, h, params, gain, epsilon, dh, dparams, s_hat, rows, c
    _backward(h.dtype, _per_warp(rows), *args)
    tiles, block = per_column(c)
    blocks = min(-(-rows // (4 * block[1])), 256)  # a few rows a thread, and work for a whole GPU
    parts = cupy.empty((blocks, 2, c))
    _sums(h.dtype, ((*tiles, blocks), block), dy, s_hat, parts, rows, c)
    _add_sums(h.dtype, (tiles, block), parts, dgain, dshift, blocks, c)
    return dh, dparams


def _shape(h: ndarray) -> tuple[int, int]:
    """Rows and channels."""
    return h.size // h.shape[-1], h.shape[-1]


def _per_warp(rows: int) -> Launch:
    """One warp a row."""
    return (min(-(-rows // 8), 65535),), (256,)
