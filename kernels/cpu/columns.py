"""Splitting and merging the features of a coupling on the CPU.

The index loops use unsigned integers: signed ones would be checked for counting from the end.
"""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.threads import CHEAP, kernel, run


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


def permute(x, indices):
    x = as_contiguous(x)
    out = np.empty((len(x), len(indices)), x.dtype)
    run(_take, len(x), out.size // CHEAP, x, indices, out)
    return out


def split(x, kept, transformed):
    return permute(x, kept), permute(x, transformed)


def merge(x_a, x_b, kept, transformed):
    x_a, x_b = as_contiguous(x_a), as_contiguous(x_b)
    x = np.empty((len(x_a), len(kept) + len(transformed)), x_a.dtype)
    run(_put, len(x), x_a.size // CHEAP, x_a, kept, x)
    run(_put, len(x), x_b.size // CHEAP, x_b, transformed, x)
    return x
