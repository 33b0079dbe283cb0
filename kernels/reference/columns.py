"""Splitting and merging the features of a coupling. Index arrays are int64.

Shapes: x (B, D); kept (a,) and transformed (b,) partition the D columns.
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


def permute(x, indices):
    """x[:, indices] (B, len(indices))."""
    return x[:, indices]
