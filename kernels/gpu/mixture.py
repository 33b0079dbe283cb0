"""Mixtures of Gaussians; formulas in reference/mixture.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, RESULT, Family, empty_like, per_row

_family = Family("mixture")
_log_prob = _family.kernel(
    "mixture_log_prob",
    x=ARRAY, params=ARRAY, log_prob=RESULT, batch=np.int64, d=np.int64, components=np.int32,
)  # fmt: skip
_backward = _family.kernel(
    "mixture_backward",
    x=ARRAY, params=ARRAY, dlog_prob=ARRAY, dx=RESULT, dparams=RESULT,
    batch=np.int64, d=np.int64, components=np.int32,
)  # fmt: skip


def mixture_log_prob(x: ndarray, params: ndarray) -> ndarray:
    """Log-density of each row under one mixture a feature."""
    batch, d = x.shape
    log_prob = cupy.empty(batch, x.dtype)
    components = params.shape[1] // (3 * d)
    _log_prob(x.dtype, per_row(batch, d), x, params, log_prob, batch, d, components)
    return log_prob


def mixture_backward(x: ndarray, params: ndarray, dlog_prob: ndarray) -> tuple[ndarray, ndarray]:
    """dx and dparams."""
    batch, d = x.shape
    dx, dparams = empty_like(x), empty_like(params)
    components = params.shape[1] // (3 * d)
    size = per_row(batch, d)
    _backward(x.dtype, size, x, params, dlog_prob, dx, dparams, batch, d, components)
    return dx, dparams
