"""The logit of bounded data on the CPU.

1 - p is computed as lam + slope (levels - x), which has no cancellation where x is near levels.
"""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import (
    accumulate,
    exp,
    log,
    logistic_log_density,
    sigmoid,
    tanh,
)
from npflow.kernels.cpu.threads import block_count, block_rows, kernel, run


@kernel
def _forward(start, stop, x, lam, levels, y, log_det):
    d = x.shape[1]
    rows = block_rows(d)
    log_slope = np.log((1 - 2 * lam) / levels)
    real = x.dtype.type
    slope, lam, levels = real((1 - 2 * lam) / levels), real(lam), real(levels)
    log_pq = np.empty((rows, d), x.dtype)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        x_flat, y_flat = x[first:last].reshape(-1), y[first:last].reshape(-1)
        log_pq_flat = log_pq.reshape(-1)
        for k in range(x_flat.size):
            log_p = log(lam + slope * x_flat[k])
            log_q = log(lam + slope * (levels - x_flat[k]))
            y_flat[k] = log_p - log_q
            log_pq_flat[k] = log_p + log_q
        for i in range(last - first):
            total = 0.0
            for j in range(d):
                total = accumulate(total, log_pq[i, j])
            log_det[first + i] = d * log_slope - total


@kernel
def _inverse(start, stop, y, lam, levels, x, log_det):
    d = y.shape[1]
    rows = block_rows(d)
    log_slope = np.log((1 - 2 * lam) / levels)
    real = y.dtype.type
    per_slope, lam = real(levels / (1 - 2 * lam)), real(lam)
    log_pq = np.empty((rows, d), y.dtype)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(y))
        x_flat, y_flat = x[first:last].reshape(-1), y[first:last].reshape(-1)
        log_pq_flat = log_pq.reshape(-1)
        for k in range(y_flat.size):
            x_flat[k] = (sigmoid(y_flat[k]) - lam) * per_slope
            log_pq_flat[k] = logistic_log_density(y_flat[k])
        for i in range(last - first):
            total = 0.0
            for j in range(d):
                total = accumulate(total, log_pq[i, j])
            log_det[first + i] = total - d * log_slope


@kernel
def _backward(start, stop, dy, dlog_det, y, lam, levels, dx):
    real = y.dtype.type
    slope = real((1 - 2 * lam) / levels)
    half, one, two = real(0.5), real(1), real(2)
    for i in range(start, stop):
        dlog_det_i = dlog_det[i]
        for j in range(y.shape[1]):
            e = exp(abs(y[i, j]))
            per_pq = e + two + one / e  # 1 / (p (1 - p)) = 4 cosh(y / 2)^2
            dx[i, j] = slope * per_pq * (dy[i, j] + dlog_det_i * tanh(half * y[i, j]))


@kernel
def _inverse_backward(start, stop, dx, dlog_det, y, lam, levels, dy):
    real = y.dtype.type
    slope = real((1 - 2 * lam) / levels)
    half, one, two = real(0.5), real(1), real(2)
    for i in range(start, stop):
        dlog_det_i = dlog_det[i]
        for j in range(y.shape[1]):
            e = exp(abs(y[i, j]))
            per_pq = e + two + one / e
            dy[i, j] = dx[i, j] / (slope * per_pq) - dlog_det_i * tanh(half * y[i, j])


def _run(function, x, lam, levels):
    x = as_contiguous(x)
    y, log_det = np.empty_like(x), np.empty(len(x), x.dtype)
    run(function, block_count(x), x.size, x, float(lam), float(levels), y, log_det)
    return y, log_det


def _run_backward(function, g, dlog_det, y, lam, levels):
    g, dlog_det, y = as_contiguous(g), as_contiguous(dlog_det), as_contiguous(y)
    out = np.empty_like(y)
    run(function, len(y), y.size, g, dlog_det, y, float(lam), float(levels), out)
    return out


def logit_forward(x, lam, levels):
    return _run(_forward, x, lam, levels)


def logit_inverse(y, lam, levels):
    return _run(_inverse, y, lam, levels)


def logit_backward(dy, dlog_det, y, lam, levels):
    return _run_backward(_backward, dy, dlog_det, y, lam, levels)


def logit_inverse_backward(dx, dlog_det, y, lam, levels):
    return _run_backward(_inverse_backward, dx, dlog_det, y, lam, levels)
