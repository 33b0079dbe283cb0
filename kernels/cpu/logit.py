"""The logit of bounded data on the CPU.

1 - p is computed as lam + slope (levels - x), which has no cancellation where x is near levels.
"""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp, log, logistic_log_density, sigmoid
from npflow.kernels.cpu.math import tanh as tanh_
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
def _slopes(y, tanh, per_pq):
    """2p - 1 = tanh(y / 2) and 1 / (p (1 - p)) = e^y + 2 + e^-y, over flat arrays."""
    half, one, two = y.dtype.type(0.5), y.dtype.type(1), y.dtype.type(2)
    for k in range(y.size):
        e = exp(abs(y[k]))
        per_pq[k] = e + two + one / e
        tanh[k] = tanh_(half * y[k])


@kernel
def _backward(start, stop, sign, g, dlog_det, y, lam, levels, out):
    """sign 1: g is dy and out dx; sign -1: g is dx and out dy."""
    d = y.shape[1]
    rows = block_rows(d)
    slope = y.dtype.type((1 - 2 * lam) / levels)
    per_pq = np.empty((rows, d), y.dtype)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(y))
        _slopes(y[first:last].reshape(-1), out[first:last].reshape(-1), per_pq.reshape(-1))
        for i in range(first, last):
            dlog_det_i = dlog_det[i]
            if sign > 0:
                for j in range(d):
                    factor = slope * per_pq[i - first, j]
                    out[i, j] = factor * (g[i, j] + dlog_det_i * out[i, j])
            else:
                for j in range(d):
                    factor = slope * per_pq[i - first, j]
                    out[i, j] = g[i, j] / factor - dlog_det_i * out[i, j]


def _run(function, x, lam, levels):
    x = as_contiguous(x)
    y, log_det = np.empty_like(x), np.empty(len(x), x.dtype)
    run(function, block_count(x), x.size, x, float(lam), float(levels), y, log_det)
    return y, log_det


def _run_backward(sign, g, dlog_det, y, lam, levels):
    g, dlog_det, y = as_contiguous(g), as_contiguous(dlog_det), as_contiguous(y)
    out = np.empty_like(y)
    args = g, dlog_det, y, float(lam), float(levels), out
    run(_backward, block_count(y), y.size, sign, *args)
    return out


def logit_forward(x, lam, levels):
    return _run(_forward, x, lam, levels)


def logit_inverse(y, lam, levels):
    return _run(_inverse, y, lam, levels)


def logit_backward(dy, dlog_det, y, lam, levels):
    return _run_backward(1, dy, dlog_det, y, lam, levels)


def logit_inverse_backward(dx, dlog_det, y, lam, levels):
    return _run_backward(-1, dx, dlog_det, y, lam, levels)
