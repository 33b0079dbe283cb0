"""A linear layer with its activation; formulas in reference/linear.py.

The products are cuBLAS's; everything around them is one kernel each way.
"""

import cupy
import cupy.cublas
import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, Family, per_column, per_row

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")  # the order of cuda/linear.cu
LEAKY_SLOPE = 0.01

_family = Family("linear")
_add_bias_and_activate = _family.kernel(
    "add_bias_and_activate", y=ARRAY, bias=ARRAY, activation=np.int32, leaky_slope=REAL,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_activate_backward = _family.kernel(
    "activate_backward", dy=ARRAY, y=ARRAY, activation=np.int32, leaky_slope=REAL, dbias=ARRAY,
    batch=np.int64, d=np.int64,
)  # fmt: skip


def linear_forward(x: ndarray, weight: ndarray, bias: ndarray, activation: str) -> ndarray:
    """y = act(x W + b)."""
    y = cupy.matmul(x, weight)
    batch, d = y.shape
    _add_bias_and_activate(
        y.dtype, per_row(batch, d), y, bias, _code(activation), LEAKY_SLOPE, batch, d
    )
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

    dy is overwritten by da = dy act'(y).
    """
    batch, d = y.shape
    _activate_backward(
        y.dtype, per_column(d), dy, y, _code(activation), LEAKY_SLOPE, dbias, batch, d
    )
    cupy.cublas.gemm("T", "N", x, dy, out=dweight, alpha=1.0, beta=1.0)
    return cupy.matmul(dy, weight.T)


def _code(activation: str) -> int:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return ACTIVATIONS.index(activation)
