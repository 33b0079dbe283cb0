"""The weights of convolutions, one launch each; formulas in reference/conv_weights.py."""

import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, RESULT, Family, empty_like, per_column

_family = Family("conv_weights")
_normalized = _family.kernel(
    "normalized_weight", v=ARRAY, gain=ARRAY, w=RESULT, rows=np.int64, n=np.int64
)
_normalized_backward = _family.kernel(
    "normalized_weight_backward", dw=ARRAY, v=ARRAY, gain=ARRAY, dv=RESULT, dgain=RESULT,
    rows=np.int64, n=np.int64,
)  # fmt: skip
_scaled = _family.kernel(
    "scaled_weight", weight=ARRAY, bias=ARRAY, log_gain=ARRAY, factor=REAL, w=RESULT, b=RESULT,
    rows=np.int64, n=np.int64,
)  # fmt: skip
_scaled_backward = _family.kernel(
    "scaled_weight_backward", dw=ARRAY, db=ARRAY, weight=ARRAY, bias=ARRAY, log_gain=ARRAY,
    factor=REAL, dweight=RESULT, dbias=RESULT, dlog_gain=RESULT, rows=np.int64, n=np.int64,
)  # fmt: skip


def normalized_weight(v: ndarray, gain: ndarray) -> ndarray:
    """W = gain v / |v|."""
    w = empty_like(v)
    _normalized(v.dtype, per_column(gain.size), v, gain, w, *_shape(v))
    return w


def normalized_weight_backward(
    dweight: ndarray, v: ndarray, gain: ndarray, dv: ndarray, dgain: ndarray
) -> None:
    """Gradient of normalized_weight; dv and dgain are added to."""
    size = per_column(gain.size)
    _normalized_backward(v.dtype, size, dweight, v, gain, dv, dgain, *_shape(v))


def scaled_weight(
    weight: ndarray, bias: ndarray, log_gain: ndarray, factor: float
) -> tuple[ndarray, ndarray]:
    """W = e^(factor log_gain) weight and b = e^(factor log_gain) bias."""
    w, b = empty_like(weight), empty_like(bias)
    size = per_column(bias.size)
    _scaled(w.dtype, size, weight, bias, log_gain, factor, w, b, *_shape(w))
    return w, b


def scaled_weight_backward(
    dscaled: ndarray,
    dscaled_bias: ndarray,
    weight: ndarray,
    bias: ndarray,
    log_gain: ndarray,
    factor: float,
    dweight: ndarray,
    dbias: ndarray,
    dlog_gain: ndarray,
) -> None:
    """Gradient of scaled_weight; dweight, dbias and dlog_gain are added to."""
    _scaled_backward(
        weight.dtype, per_column(bias.size), dscaled, dscaled_bias, weight, bias, log_gain, factor,
        dweight, dbias, dlog_gain, *_shape(weight),
    )  # fmt: skip


def _shape(weight: ndarray) -> tuple[int, int]:
    n = weight.shape[-1]
    return weight.size // n, n
