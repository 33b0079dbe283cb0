"""Splitting and merging the features of a coupling, and adding up log-dets.

Shapes: x (B, D); kept (a,) and transformed (b,), int64, partition the D columns.
"""

import numpy as np


def split(x, kept, transformed):
    """x_a = x[:, kept] (B, a), x_b = x[:, transformed] (B, b)."""
    return x[:, kept], x[:, transformed]


def merge(x_a, x_b, kept, transformed):
    """The x (B, a + b) with x[:, kept] = x_a and x[:, transformed] = x_b."""
    x = np.empty((len(x_a), len(kept) + len(transformed)), x_a.dtype)
    x[:, kept] = x_a
    x[:, transformed] = x_b
    return x


def merge_add(x_a, y_a, x_b, kept, transformed):
    """The x (B, a + b) with x[:, kept] = x_a + y_a and x[:, transformed] = x_b."""
    return merge(x_a + y_a, x_b, kept, transformed)


def permute(x, indices):
    """x[:, indices] (B, len(indices))."""
    return x[:, indices]


def add_up(arrays):
    """The sum of a tuple of one or more arrays of one shape, added from the first to the last."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total
