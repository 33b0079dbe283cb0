"""The inverse and log|det| of a small matrix; see reference/inverse_matrix.py.

One block does it all, so that no number goes to the host; a matrix that has not changed costs one
launch that compares.
"""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, DOUBLES, INDICES, RESULT, Family

_family = Family("inverse_matrix")
_update = _family.kernel(
    "update_inverse", weight=ARRAY, factored=RESULT, inverse=RESULT, log_det=RESULT, count=INDICES,
    a=DOUBLES, x=DOUBLES, epsilon=np.float64, n=np.int64,
)  # fmt: skip


def update_inverse(
    weight: ndarray, factored: ndarray, inverse: ndarray, log_det: ndarray, count: ndarray
) -> None:
    """If weight is not equal to factored: inverse = weight^-1, log_det = log|det weight|."""
    a, x = cupy.empty((2, *weight.shape))
    epsilon = float(np.finfo(weight.dtype).eps)
    _update(
        weight.dtype, ((1,), (512,)), weight, factored, inverse, log_det, count, a, x, epsilon,
        len(weight),
    )  # fmt: skip
