"""Splitting and merging features, and adding up log-dets; formulas in reference/columns.py.

The indices are not checked against the width of x: a GPU would have to wait for the answer.
"""

import cupy
import numpy as np
from cupy import ndarray

from .launch import (
    ARRAY,
    ARRAYS,
    INDICES,
    MAX_ARRAYS,
    RESULT,
    Family,
    empty_like,
    per_element,
    per_row,
)

_family = Family("columns")
_split = _family.kernel(
    "split", x=ARRAY, kept=INDICES, transformed=INDICES, x_a=RESULT, x_b=RESULT,
    batch=np.int64, d=np.int64, a=np.int64, b=np.int64,
)  # fmt: skip
_merge = _family.kernel(
    "merge", x_a=ARRAY, x_b=ARRAY, kept=INDICES, transformed=INDICES, x=RESULT,
    batch=np.int64, a=np.int64, b=np.int64,
)  # fmt: skip
_merge_add = _family.kernel(
    "merge_add", x_a=ARRAY, y_a=ARRAY, x_b=ARRAY, kept=INDICES, transformed=INDICES, x=RESULT,
    batch=np.int64, a=np.int64, b=np.int64,
)  # fmt: skip
_permute = _family.kernel(
    "permute", x=ARRAY, indices=INDICES, out=RESULT, batch=np.int64, d=np.int64, n=np.int64
)  # fmt: skip
_add_up = _family.kernel("add_up", arrays=ARRAYS, total=RESULT, count=np.int32, n=np.int64)


def split(x: ndarray, kept: ndarray, transformed: ndarray) -> tuple[ndarray, ndarray]:
    """x[:, kept], x[:, transformed]."""
    (batch, d), a, b = x.shape, kept.size, transformed.size
    x_a, x_b = cupy.empty((batch, a), x.dtype), cupy.empty((batch, b), x.dtype)
    _split(x.dtype, per_row(batch, max(a, b)), x, kept, transformed, x_a, x_b, batch, d, a, b)
    return x_a, x_b


def merge(x_a: ndarray, x_b: ndarray, kept: ndarray, transformed: ndarray) -> ndarray:
    """The x with x[:, kept] = x_a and x[:, transformed] = x_b."""
    batch, a, b = len(x_a), kept.size, transformed.size
    x = cupy.empty((batch, a + b), x_a.dtype)
    _merge(x.dtype, per_row(batch, max(a, b)), x_a, x_b, kept, transformed, x, batch, a, b)
    return x


def merge_add(
    x_a: ndarray, y_a: ndarray, x_b: ndarray, kept: ndarray, transformed: ndarray
) -> ndarray:
    """The x with x[:, kept] = x_a + y_a and x[:, transformed] = x_b."""
    batch, a, b = len(x_a), kept.size, transformed.size
    x = cupy.empty((batch, a + b), x_a.dtype)
    size = per_row(batch, max(a, b))
    _merge_add(x.dtype, size, x_a, y_a, x_b, kept, transformed, x, batch, a, b)
    return x


def permute(x: ndarray, indices: ndarray) -> ndarray:
    """x[:, indices]."""
    (batch, d), n = x.shape, indices.size
    out = cupy.empty((batch, n), x.dtype)
    _permute(x.dtype, per_row(batch, n), x, indices, out, batch, d, n)
    return out


def add_up(arrays: tuple[ndarray, ...]) -> ndarray:
    """The sum of the arrays, from the first to the last; as many at a time as one launch takes."""
    total, arrays = arrays[0], arrays[1:]
    while True:
        taken = (total, *arrays[: MAX_ARRAYS - 1])
        total, arrays = empty_like(total), arrays[MAX_ARRAYS - 1 :]
        _add_up(total.dtype, per_element(total.size), taken, total, len(taken), total.size)
        if not arrays:
            return total
