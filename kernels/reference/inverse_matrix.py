"""The inverse and log|det| of a small matrix, found anew only when the matrix has changed.

Shapes: weight, factored, inverse (C, C); log_det (1,); count (1,) int64.
"""

import numpy as np


def update_inverse(weight, factored, inverse, log_det, count):
    """If weight is not equal to factored: inverse = weight^-1, log_det = log|det weight|.

    factored then becomes a copy of weight, and count goes up by 1: it counts factorisations. The
    arithmetic is in float64, by an LU factorisation with partial pivoting. If the reciprocal of
    the condition number, 1 / (|W|_1 |W^-1|_1), is below the machine epsilon of weight's dtype, the
    matrix is as good as singular and log_det and inverse are NaN. A weight with a NaN equals
    nothing, so it is tried at every call.
    """
    if np.array_equal(weight, factored):
        return
    factored[...] = weight
    count += 1
    exact = weight.astype(np.float64)
    try:
        found = np.linalg.inv(exact)
    except np.linalg.LinAlgError:  # a pivot is zero
        found = np.full_like(exact, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # they leave what is refused below
        condition = _norm(exact) * _norm(found)
    regular = condition <= 1 / np.finfo(weight.dtype).eps
    inverse[...] = found if regular else np.nan
    log_det[...] = np.linalg.slogdet(exact)[1] if regular else np.nan


def _norm(a):
    """The 1-norm: the largest sum of a column's absolute values."""
    return np.abs(a).sum(axis=0).max()
