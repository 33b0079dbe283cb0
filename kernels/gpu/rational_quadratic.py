"""The rational-quadratic spline; formulas in reference/rational_quadratic.py."""

from collections.abc import Callable

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, REAL, RESULT, Family, empty_like, per_element, per_row

_family = Family("rational_quadratic")
_forward = _family.kernel(
    "rational_quadratic_forward", x=ARRAY, params=ARRAY, bound=REAL, z=RESULT, log_det=RESULT,
    batch=np.int64, d=np.int64, bins=np.int32,
)  # fmt: skip
_inverse = _family.kernel(
    "rational_quadratic_inverse", z=ARRAY, params=ARRAY, bound=REAL, x=RESULT, log_det=RESULT,
    batch=np.int64, d=np.int64, bins=np.int32,
)  # fmt: skip
_backward = _family.kernel(
    "rational_quadratic_backward", dz=ARRAY, dlog_det=ARRAY, x=ARRAY, params=ARRAY, bound=REAL,
    dx=RESULT, dparams=RESULT, batch=np.int64, d=np.int64, bins=np.int32,
)  # fmt: skip
_inverse_backward = _family.kernel(
    "rational_quadratic_inverse_backward", dx=ARRAY, dlog_det=ARRAY, x=ARRAY, params=ARRAY,
    bound=REAL, dz=RESULT, dparams=RESULT, batch=np.int64, d=np.int64, bins=np.int32,
)  # fmt: skip


def _bins(params: ndarray, d: int) -> int:
    return (params.shape[1] // d + 1) // 3


def _apply(
    kernel: Callable[..., None], value: ndarray, params: ndarray, bound: float
) -> tuple[ndarray, ndarray]:
    batch, d = value.shape
    out, log_det = empty_like(value), cupy.empty(batch, value.dtype)
    sizes = batch, d, _bins(params, d)
    kernel(value.dtype, per_row(batch, d), value, params, bound, out, log_det, *sizes)
    return out, log_det


def _pull_back(
    kernel: Callable[..., None],
    given: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    params: ndarray,
    bound: float,
) -> tuple[ndarray, ndarray]:
    batch, d = x.shape
    out, dparams = empty_like(x), empty_like(params)
    arrays = given, dlog_det, x, params, bound, out, dparams
    kernel(x.dtype, per_element(x.size), *arrays, batch, d, _bins(params, d))
    return out, dparams


def rational_quadratic_forward(
    x: ndarray, params: ndarray, bound: float
) -> tuple[ndarray, ndarray]:
    """z = spline(x) and log_det."""
    return _apply(_forward, x, params, bound)


def rational_quadratic_inverse(
    z: ndarray, params: ndarray, bound: float
) -> tuple[ndarray, ndarray]:
    """x = spline^-1(z) and log_det."""
    return _apply(_inverse, z, params, bound)


def rational_quadratic_backward(
    dz: ndarray, dlog_det: ndarray, x: ndarray, params: ndarray, bound: float
) -> tuple[ndarray, ndarray]:
    """Gradient of rational_quadratic_forward: dx, dparams."""
    return _pull_back(_backward, dz, dlog_det, x, params, bound)


def rational_quadratic_inverse_backward(
    dx: ndarray, dlog_det: ndarray, x: ndarray, params: ndarray, bound: float
) -> tuple[ndarray, ndarray]:
    """Gradient of rational_quadratic_inverse at x, its output: dz, dparams."""
    return _pull_back(_inverse_backward, dx, dlog_det, x, params, bound)
