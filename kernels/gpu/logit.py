"""Logit of bounded data; formulas in reference/logit.py."""

import math

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, RESULT, Family, empty_like, per_row

_family = Family("logit")
_forward = _family.kernel(
    "logit_forward", x=ARRAY, lam=REAL, slope=REAL, levels=REAL, log_slope=REAL, y=RESULT,
    log_det=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse = _family.kernel(
    "logit_inverse", y=ARRAY, lam=REAL, slope=REAL, log_slope=REAL, x=RESULT, log_det=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_backward = _family.kernel(
    "logit_backward", dy=ARRAY, dlog_det=ARRAY, y=ARRAY, slope=REAL, dx=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip
_inverse_backward = _family.kernel(
    "logit_inverse_backward", dx=ARRAY, dlog_det=ARRAY, y=ARRAY, slope=REAL, dy=RESULT,
    batch=np.int64, d=np.int64,
)  # fmt: skip


def logit_forward(x: ndarray, lam: float, levels: float) -> tuple[ndarray, ndarray]:
    """y = logit(lam + slope x) and log_det."""
    batch, d = x.shape
    slope = _slope(lam, levels)
    y, log_det = empty_like(x), cupy.empty(batch, x.dtype)
    log_slope = math.log(slope)
    grid = per_row(batch, d)
    _forward(x.dtype, grid, x, lam, slope, levels, log_slope, y, log_det, batch, d)
    return y, log_det


def logit_inverse(y: ndarray, lam: float, levels: float) -> tuple[ndarray, ndarray]:
    """x = (sigmoid(y) - lam) / slope and log_det."""
    batch, d = y.shape
    slope = _slope(lam, levels)
    x, log_det = empty_like(y), cupy.empty(batch, y.dtype)
    _inverse(y.dtype, per_row(batch, d), y, lam, slope, math.log(slope), x, log_det, batch, d)
    return x, log_det


def logit_backward(
    dy: ndarray, dlog_det: ndarray, y: ndarray, lam: float, levels: float
) -> ndarray:
    """Gradient of logit_forward from its output y: returns dx."""
    batch, d = y.shape
    dx = empty_like(y)
    _backward(y.dtype, per_row(batch, d), dy, dlog_det, y, _slope(lam, levels), dx, batch, d)
    return dx


def logit_inverse_backward(
    dx: ndarray, dlog_det: ndarray, y: ndarray, lam: float, levels: float
) -> ndarray:
    """Gradient of logit_inverse: returns dy."""
    batch, d = y.shape
    dy = empty_like(y)
    _inverse_backward(
        y.dtype, per_row(batch, d), dx, dlog_det, y, _slope(lam, levels), dy, batch, d
    )
    return dy


def _slope(lam: float, levels: float) -> float:
    return (1 - 2 * lam) / levels
