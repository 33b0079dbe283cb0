"""Log-densities of factorised distributions; formulas in reference/densities.py."""

from collections.abc import Callable

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, RESULT, Family, Kind, empty_like, per_row

_family = Family("densities")
_log_prob_parameters: dict[str, Kind] = {
    "z": ARRAY, "log_prob": RESULT, "batch": np.int64, "d": np.int64
}  # fmt: skip
_backward_parameters: dict[str, Kind] = {
    "z": ARRAY, "dlog_prob": ARRAY, "dz": RESULT, "batch": np.int64, "d": np.int64
}  # fmt: skip
_normal = _family.kernel("normal_log_prob", **_log_prob_parameters)
_normal_backward = _family.kernel("normal_log_prob_backward", **_backward_parameters)
_logistic = _family.kernel("logistic_log_prob", **_log_prob_parameters)
_logistic_backward = _family.kernel("logistic_log_prob_backward", **_backward_parameters)
_bernoulli = _family.kernel(
    "bernoulli_log_prob", x=ARRAY, logits=ARRAY, log_prob=RESULT, batch=np.int64, d=np.int64
)
_bernoulli_backward = _family.kernel(
    "bernoulli_backward",
    x=ARRAY, logits=ARRAY, dlog_prob=ARRAY, dlogits=RESULT, batch=np.int64, d=np.int64,
)  # fmt: skip


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


def bernoulli_log_prob(x: ndarray, logits: ndarray) -> ndarray:
    """Log-probability of each row of x in {0, 1} under probabilities sigmoid(logits)."""
    batch, d = x.shape
    log_prob = cupy.empty(batch, x.dtype)
    _bernoulli(x.dtype, per_row(batch, d), x, logits, log_prob, batch, d)
    return log_prob


def bernoulli_backward(x: ndarray, logits: ndarray, dlog_prob: ndarray) -> ndarray:
    """dlogits = (x - sigmoid(logits)) dlog_prob."""
    batch, d = x.shape
    dlogits = empty_like(logits)
    size = per_row(batch, d)
    _bernoulli_backward(x.dtype, size, x, logits, dlog_prob, dlogits, batch, d)
    return dlogits


def _log_prob(kernel: Callable[..., None], z: ndarray) -> ndarray:
    batch, d = z.shape
    log_prob = cupy.empty(batch, z.dtype)
    kernel(z.dtype, per_row(batch, d), z, log_prob, batch, d)
    return log_prob


def _log_prob_backward(kernel: Callable[..., None], z: ndarray, dlog_prob: ndarray) -> ndarray:
    batch, d = z.shape
    dz = empty_like(z)
    kernel(z.dtype, per_row(batch, d), z, dlog_prob, dz, batch, d)
    return dz
