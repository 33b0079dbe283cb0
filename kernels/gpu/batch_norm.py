"""Batch normalisation as a bijection; formulas in reference/batch_norm.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, RESULT, Family, empty_like, per_column, per_row

_family = Family("batch_norm")
_moments = _family.kernel(
    "moments", x=ARRAY, mean=RESULT, var=RESULT, batch=np.int64, d=np.int64
)  # fmt: skip
_forward = _family.kernel(
    "batch_norm_forward", x=ARRAY, mean=ARRAY, var=ARRAY, log_gamma=ARRAY, beta=ARRAY,
    epsilon=REAL, z=RESULT, log_det=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse = _family.kernel(
    "batch_norm_inverse", z=ARRAY, mean=ARRAY, var=ARRAY, log_gamma=ARRAY, beta=ARRAY,
    epsilon=REAL, x=RESULT, log_det=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "batch_norm_backward", dz=ARRAY, dlog_det=ARRAY, x=ARRAY, mean=ARRAY, var=ARRAY,
    log_gamma=ARRAY, epsilon=REAL, own=np.int32, dx=RESULT, dlog_gamma=RESULT, dbeta=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse_backward = _family.kernel(
    "batch_norm_inverse_backward", dx=ARRAY, dlog_det=ARRAY, x=ARRAY, mean=ARRAY, var=ARRAY,
    log_gamma=ARRAY, epsilon=REAL, dz=RESULT, dlog_gamma=RESULT, dbeta=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip


def moments(x: ndarray) -> tuple[ndarray, ndarray]:
    """Mean and (biased) variance of each column."""
    batch, d = x.shape
    mean, var = cupy.empty(d, x.dtype), cupy.empty(d, x.dtype)
    _moments(x.dtype, per_column(d), x, mean, var, batch, d)
    return mean, var


def batch_norm_forward(
    x: ndarray, mean: ndarray, var: ndarray, log_gamma: ndarray, beta: ndarray, epsilon: float
) -> tuple[ndarray, ndarray]:
    """z = gamma (x - mean) / sigma + beta and log_det."""
    batch, d = x.shape
    z, log_det = empty_like(x), cupy.empty(batch, x.dtype)
    _forward(
        x.dtype, per_row(batch, d), x, mean, var, log_gamma, beta, epsilon, z, log_det, batch, d
    )
    return z, log_det


def batch_norm_inverse(
    z: ndarray, mean: ndarray, var: ndarray, log_gamma: ndarray, beta: ndarray, epsilon: float
) -> tuple[ndarray, ndarray]:
    """x = (z - beta) sigma / gamma + mean and log_det."""
    batch, d = z.shape
    x, log_det = empty_like(z), cupy.empty(batch, z.dtype)
    _inverse(
        z.dtype, per_row(batch, d), z, mean, var, log_gamma, beta, epsilon, x, log_det, batch, d
    )
    return x, log_det


def batch_norm_backward(
    dz: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    mean: ndarray,
    var: ndarray,
    log_gamma: ndarray,
    epsilon: float,
    own: bool,
    dlog_gamma: ndarray,
    dbeta: ndarray,
) -> ndarray:
    """Gradient of batch_norm_forward: returns dx; dlog_gamma and dbeta are added to."""
    batch, d = x.shape
    dx = empty_like(x)
    _backward(
        x.dtype, per_column(d), dz, dlog_det, x, mean, var, log_gamma, epsilon, int(own),
        dx, dlog_gamma, dbeta, batch, d,
    )  # fmt: skip
    return dx


def batch_norm_inverse_backward(
    dx: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    mean: ndarray,
    var: ndarray,
    log_gamma: ndarray,
    epsilon: float,
    dlog_gamma: ndarray,
    dbeta: ndarray,
) -> ndarray:
    """Gradient of batch_norm_inverse: returns dz; dlog_gamma and dbeta are added to."""
    batch, d = x.shape
    dz = empty_like(x)
    _inverse_backward(
        x.dtype, per_column(d), dx, dlog_det, x, mean, var, log_gamma, epsilon,
        dz, dlog_gamma, dbeta, batch, d,
    )  # fmt: skip
    return dz
