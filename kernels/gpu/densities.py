"""Log-densities of factorised base distributions; formulas in reference/densities.py."""

from collections.abc import Callable

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, Family, Kind, per_row

_family = Family("densities")
_log_prob_parameters: dict[str, Kind] = {
    "z": ARRAY, "log_prob": ARRAY, "batch": np.int64, "d": np.int64
}  # fmt: skip
_backward_parameters: dict[str, Kind] = {
    "z": ARRAY, "dlog_prob": ARRAY, "dz": ARRAY, "batch": np.int64, "d": np.int64
}  # fmt: skip
_normal = _family.kernel("normal_log_prob", **_log_prob_parameters)
_normal_backward = _family.kernel("normal_log_prob_backward", **_backward_parameters)
_logistic = _family.kernel("logistic_log_prob", **_log_prob_parameters)
_logistic_backward = _family.kernel("logistic_log_prob_backward", **_backward_parameters)


def normal_log_prob(z: ndarray) -> ndarray:
    """Standard normal log-density of each row."""
    return _log_prob(_normal, z)


def normal_log_prob_backward(z: ndarray, dlog_prob: ndarray) -> ndarray:
    """dz = -z dlog_prob."""
    return _log_prob_backward(_normal_backward, z, dlog_prob)


def logistic_log_prob(z: ndarray) -> ndarray:
    """Standard logistic log-density of each row."""
    return _log_prob(_logistic, z)


def logistic_log_prob_backward(z: ndarray, dlog_prob: ndarray) -> ndarray:
    """dz = -tanh(z / 2) dlog_prob."""
    return _log_prob_backward(_logistic_backward, z, dlog_prob)


def _log_prob(kernel: Callable[..., None], z: ndarray) -> ndarray:
    batch, d = z.shape
    log_prob = cupy.empty(batch, z.dtype)
    kernel(z.dtype, per_row(batch, d), z, log_prob, batch, d)
    return log_prob


def _log_prob_backward(kernel: Callable[..., None], z: ndarray, dlog_prob: ndarray) -> ndarray:
    batch, d = z.shape
    dz = cupy.empty_like(z)
    kernel(z.dtype, per_row(batch, d), z, dlog_prob, dz, batch, d)
    return dz
