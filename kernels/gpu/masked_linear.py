"""A linear layer masked by a staircase; formulas in reference/masked_linear.py.

One kernel each way: each tile of a product reads on the device how far the staircase lets it reach,
so that zero blocks cost nothing and no mask travels to the host.
"""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, INDICES, REAL, RESULT, Family, empty_like, per_tile, per_tile_backward
from .linear import LEAKY_SLOPE, _code

_family = Family("masked_linear")
_forward = _family.kernel(
    "masked_linear_forward", x=ARRAY, weight=ARRAY, bias=ARRAY, reach=INDICES, y=RESULT,
    activation=np.int32, leaky_slope=REAL, batch=np.int64, n_in=np.int64, n_out=np.int64,
    n=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "masked_linear_backward", dy=ARRAY, x=ARRAY, y=ARRAY, weight=ARRAY, reach=INDICES, dx=RESULT,
    dweight=RESULT, dbias=RESULT, activation=np.int32, leaky_slope=REAL,
    batch=np.int64, n_in=np.int64, n_out=np.int64, n=np.int64,
)  # fmt: skip


def masked_linear_forward(
    x: ndarray, weight: ndarray, bias: ndarray, reach: ndarray, activation: str
) -> ndarray:
    """y = act(x W + b), column p n + j of W zero from row reach[j] on."""
    (batch, n_in), n_out = x.shape, weight.shape[1]
    y = cupy.empty((batch, n_out), x.dtype)
    _forward(
        x.dtype, per_tile(batch, n_out), x, weight, bias, reach, y, _code(activation), LEAKY_SLOPE,
        batch, n_in, n_out, len(reach),
    )  # fmt: skip
    return y


def masked_linear_backward(
    dy: ndarray,
    x: ndarray,
    y: ndarray,
    weight: ndarray,
    reach: ndarray,
    activation: str,
    dweight: ndarray,
    dbias: ndarray,
) -> ndarray:
    """Gradient of masked_linear_forward: returns dx; dweight and dbias are added to.

    dweight changes inside the mask only.
    """
    (batch, n_in), n_out = x.shape, weight.shape[1]
    dx = empty_like(x)
    _backward(
        x.dtype, per_tile_backward(batch, n_in, n_out), dy, x, y, weight, reach, dx, dweight, dbias,
        _code(activation), LEAKY_SLOPE, batch, n_in, n_out, len(reach),
    )  # fmt: skip
    return dx
