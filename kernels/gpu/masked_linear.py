"""A linear layer masked by a staircase; formulas in reference/masked_linear.py.

The products are our own kernels: each tile reads on the device how far the staircase lets it reach,
so that zero blocks cost nothing and no mask travels to the host. Around them are linear's kernels.
"""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, INDICES, Family, Launch, per_column, per_row
from .linear import LEAKY_SLOPE, _activate_backward, _add_bias_and_activate, _code

_family = Family("masked_linear")
_product = _family.kernel(
    "masked_product", x=ARRAY, weight=ARRAY, reach=INDICES, y=ARRAY,
    batch=np.int64, n_in=np.int64, n_out=np.int64, n=np.int64,
)  # fmt: skip
_product_dx = _family.kernel(
    "masked_product_dx", da=ARRAY, weight=ARRAY, reach=INDICES, dx=ARRAY,
    batch=np.int64, n_in=np.int64, n_out=np.int64, n=np.int64,
)  # fmt: skip
_product_dweight = _family.kernel(
    "masked_product_dweight", x=ARRAY, da=ARRAY, reach=INDICES, dweight=ARRAY,
    batch=np.int64, n_in=np.int64, n_out=np.int64, n=np.int64,
)  # fmt: skip


def masked_linear_forward(
    x: ndarray, weight: ndarray, bias: ndarray, reach: ndarray, activation: str
) -> ndarray:
    """y = act(x W + b), column p n + j of W zero from row reach[j] on."""
    (batch, n_in), n_out = x.shape, weight.shape[1]
    y = cupy.empty((batch, n_out), x.dtype)
    _product(x.dtype, per_tile(batch, n_out), x, weight, reach, y, batch, n_in, n_out, len(reach))
    _add_bias_and_activate(
        y.dtype, per_row(batch, n_out), y, bias, _code(activation), LEAKY_SLOPE, batch, n_out
    )
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

    dweight changes inside the mask only. dy is overwritten by da = dy act'(y).
    """
    (batch, n_in), n_out = x.shape, weight.shape[1]
    sizes = batch, n_in, n_out, len(reach)
    _activate_backward(
        y.dtype, per_column(n_out), dy, y, _code(activation), LEAKY_SLOPE, dbias, batch, n_out
    )
    _product_dweight(x.dtype, per_tile(n_in, n_out), x, dy, reach, dweight, *sizes)
    dx = cupy.empty_like(x)
    _product_dx(x.dtype, per_tile(batch, n_in), dy, weight, reach, dx, *sizes)
    return dx


def per_tile(rows: int, columns: int, parts: int = 1) -> Launch:
    """One block of 256 threads a tile of 64 x 64 of each part, as cuda/tile.cuh needs it."""
    return (-(-rows // 64), -(-columns // 64), parts), (256,)
