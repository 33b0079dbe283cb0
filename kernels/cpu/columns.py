"""Splitting and merging the features of a coupling, and adding up log-dets, on the CPU.

The index loops use unsigned integers: signed ones would be checked for counting from the end.
"""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.threads import CHEAP, kernel, run
from npflow.kernels.reference.columns import add_up as add_up  # B numbers a layer: NumPy is enough


@kernel
def _take(start, stop, x, indices, out):
    """out = x[:, indices]."""
    for i in range(start, stop):
        for j in range(len(indices)):
            out[i, j] = x[i, np.uint64(indices[j])]


@kernel
def _put(start, stop, x, indices, out):
    """out[:, indices] = x."""
    for i in range(start, stop):
        for j in range(len(indices)):
            out[i, np.uint64(indices[j])] = x[i, j]


@kernel
def _put_sum(start, stop, x, y, indices, out):
    """out[:, indices] = x + y."""
    for i in range(start, stop):
        for j in range(len(indices)):
            out[i, np.uint64(indices[j])] = x[i, j] + y[i, j]


@kernel
def _split(start, stop, x, kept, transformed, x_a, x_b):
    _take(start, stop, x, kept, x_a)
    _take(start, stop, x, transformed, x_b)


@kernel
def _merge(start, stop, x_a, x_b, kept, transformed, x):
    _put(start, stop, x_a, kept, x)
    _put(start, stop, x_b, transformed, x)


@kernel
def _merge_add(start, stop, x_a, y_a, x_b, kept, transformed, x):
    _put_sum(start, stop, x_a, y_a, kept, x)
    _put(start, stop, x_b, transformed, x)


def permute(x, indices):
    x = as_contiguous(x)
    out = np.empty((len(x), len(indices)), x.dtype)
    run(_take, len(x), out.size // CHEAP, x, indices, out)
    return out


def split(x, kept, transformed):
    x = as_contiguous(x)
    x_a = np.empty((len(x), len(kept)), x.dtype)
    x_b = np.empty((len(x), len(transformed)), x.dtype)
    run(_split, len(x), x.size // CHEAP, x, kept, transformed, x_a, x_b)
    return x_a, x_b


def merge(x_a, x_b, kept, transformed):
    x_a, x_b = as_contiguous(x_a), as_contiguous(x_b)
    x = np.empty((len(x_a), len(kept) + len(transformed)), x_a.dtype)
    run(_merge, len(x), x.size // CHEAP, x_a, x_b, kept, transformed, x)
    return x


def merge_add(x_a, y_a, x_b, kept, transformed):
    x_a, y_a, x_b = as_contiguous(x_a), as_contiguous(y_a), as_contiguous(x_b)
    x = np.empty((len(x_a), len(kept) + len(transformed)), x_a.dtype)
    run(_merge_add, len(x), x.size // CHEAP, x_a, y_a, x_b, kept, transformed, x)
    return x
