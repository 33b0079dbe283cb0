"""A linear layer with its activation; formulas in reference/linear.py.

A small layer is one kernel each way: there the time goes into launches. The products of a large one
are cuBLAS's, and everything around them is one kernel each way.
"""

import cupy
import cupy.cublas
import numpy as np
from cupy import ndarray

from .launch import (
    ARRAY,
    REAL,
    RESULT,
    Family,
    checked_arrays,
    empty_like,
    per_column,
    per_row,
    per_tile,
    per_tile_backward,
)

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")  # the order of cuda/activation.cuh
LEAKY_SLOPE = 0.01
SMALL = 512  # rows, inputs or outputs: no sum of a tile is longer

_family = Family("linear")
_forward = _family.kernel(
    "linear_forward", x=ARRAY, weight=ARRAY, bias=ARRAY, y=RESULT, activation=np.int32,
    leaky_slope=REAL, batch=np.int64, n_in=np.int64, n_out=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "linear_backward", dy=ARRAY, x=ARRAY, y=ARRAY, weight=ARRAY, dx=RESULT, dweight=RESULT,
    dbias=RESULT, activation=np.int32, leaky_slope=REAL,
    batch=np.int64, n_in=np.int64, n_out=np.int64,
)  # fmt: skip
_add_bias_and_activate = _family.kernel(
    "add_bias_and_activate", y=RESULT, bias=ARRAY, activation=np.int32, leaky_slope=REAL,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_activate_backward = _family.kernel(
    "activate_backward", dy=RESULT, y=ARRAY, activation=np.int32, leaky_slope=REAL, dbias=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip


def linear_forward(x: ndarray, weight: ndarray, bias: ndarray, activation: str) -> ndarray:
    """y = act(x W + b)."""
    (batch, n_in), n_out, code = x.shape, weight.shape[1], _code(activation)
    if max(batch, n_in, n_out) <= SMALL:
        y = cupy.empty((batch, n_out), x.dtype)
        _forward(
            x.dtype, per_tile(batch, n_out), x, weight, bias, y, code, LEAKY_SLOPE,
            batch, n_in, n_out,
        )  # fmt: skip
        return y
    x, weight = checked_arrays("linear_forward", ARRAY, x=x, weight=weight)
    y = cupy.matmul(x, weight)
    _add_bias_and_activate(y.dtype, per_row(batch, n_out), y, bias, code, LEAKY_SLOPE, batch, n_out)
    return y


def linear_backward(
    dy: ndarray,
    x: ndarray,
    y: ndarray,
    weight: ndarray,
    activation: str,
    dweight: ndarray,
    dbias: ndarray,
) -> ndarray:
    """Gradient of linear_forward: returns dx; dweight and dbias are added to.

    dy may be overwritten by da = dy act'(y).
    """
    (batch, n_in), n_out, code = x.shape, weight.shape[1], _code(activation)
    if max(batch, n_in, n_out) <= SMALL:
        dx = empty_like(x)
        _backward(
            x.dtype, per_tile_backward(batch, n_in, n_out), dy, x, y, weight, dx, dweight, dbias,
            code, LEAKY_SLOPE, batch, n_in, n_out,
        )  # fmt: skip
        return dx
    dy, x, weight = checked_arrays("linear_backward", ARRAY, dy=dy, x=x, weight=weight)
    checked_arrays("linear_backward", RESULT, dy=dy, dweight=dweight)
    _activate_backward(y.dtype, per_column(n_out), dy, y, code, LEAKY_SLOPE, dbias, batch, n_out)
    cupy.cublas.gemm("T", "N", x, dy, out=dweight, alpha=1.0, beta=1.0)
    return cupy.matmul(dy, weight.T)


def _code(activation: str) -> int:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return ACTIVATIONS.index(activation)
