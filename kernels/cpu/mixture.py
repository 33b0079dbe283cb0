"""Mixtures of Gaussians on the CPU: one mixture a feature.

Params are part-major, so parameter p of all features is one contiguous run. A block of features
(of several rows, if rows are short) is copied to (3K, width), where the loops over its columns
vectorise and the components are outside; it stays in the first cache for all passes. Nothing is
kept for the gradient: it computes the responsibilities again.
"""

import math

import numpy as np
from numba.extending import register_jitable
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp, log
from npflow.kernels.cpu.threads import kernel, run

WIDTH = 128  # columns of a block


@register_jitable
def _block_shape(d):
    """Rows and features of a block: whole rows if several fit, else an even share of one row."""
    return max(1, WIDTH // d), -(-d // -(-d // WIDTH))


@kernel
def _load(params, left, right, block):
    """block (3K, width) = features left..right of the rows of params, one after the other."""
    parts, n = len(block), right - left
    d = params.shape[1] // parts
    for row in range(len(params)):
        for p in range(parts):
            source, target = params[row][p * d + left :], block[p][row * n :]
            for j in range(n):
                target[j] = source[j]


@kernel
def _store(block, left, right, params):
    """The inverse of _load."""
    parts, n = len(block), right - left
    d = params.shape[1] // parts
    for row in range(len(params)):
        for p in range(parts):
            source, target = block[p][row * n :], params[row][p * d + left :]
            for j in range(n):
                target[j] = source[j]


@kernel
def _responsibilities(x, params, n, weights, state):
    """Of the first n columns: r_k = params[k] / total_joint and w_k = weights[k] / total.

    params (3K, width) is overwritten by [e^(joint_k - peak) | (x - mean) / sigma | 1 / sigma], and
    state by total, peak, total_joint and a row of no use. So
    log p(x) = peak + log(total_joint / total) - log(2 pi) / 2.
    """
    components = len(params) // 3
    total, peak, total_joint, highest = state[0], state[1], state[2], state[3]
    zero, half = x.dtype.type(0), x.dtype.type(0.5)
    limit = x.dtype.type(math.sqrt(np.finfo(x.dtype).max) / 2)  # see reference/mixture.py
    for i in range(n):
        highest[i] = params[0, i]
        peak[i] = -np.inf
        total[i] = total_joint[i] = zero
    for k in range(1, components):
        for i in range(n):
            highest[i] = max(highest[i], params[k, i])
    for k in range(components):
        for i in range(n):
            logit = params[k, i] - highest[i]
            log_scale = params[2 * components + k, i]
            precision = exp(-log_scale)
            precision = limit if precision > limit else precision
            u = (x[i] - params[components + k, i]) * precision
            u = limit if u > limit else u
            u = -limit if u < -limit else u
            joint = logit - log_scale - half * u * u
            weight = exp(logit)
            weights[k, i] = weight
            total[i] += weight
            params[k, i] = joint
            params[components + k, i] = u
            params[2 * components + k, i] = precision
            peak[i] = max(peak[i], joint)
    for k in range(components):
        for i in range(n):
            e = exp(params[k, i] - peak[i])
            params[k, i] = e
            total_joint[i] += e


@kernel
def _log_prob(start, stop, x, params, log_prob):
    d = x.shape[1]
    rows, features = _block_shape(d)
    parts = params.shape[1] // d
    block, weights = np.empty((parts, WIDTH), x.dtype), np.empty((parts // 3, WIDTH), x.dtype)
    column, state = np.empty((1, WIDTH), x.dtype), np.empty((4, WIDTH), x.dtype)
    total, peak, total_joint = state[0], state[1], state[2]
    for group in range(start, stop):
        first, last = group * rows, min((group + 1) * rows, len(x))
        sums = np.full(last - first, -0.5 * d * math.log(2 * math.pi))
        for left in range(0, d, features):
            right = min(left + features, d)
            n = right - left
            size = (last - first) * n
            _load(x[first:last], left, right, column)
            _load(params[first:last], left, right, block)
            _responsibilities(column[0], block, size, weights, state)
            for i in range(size):
                column[0, i] = peak[i] + (log(total_joint[i]) - log(total[i]))
            for row in range(last - first):
                for j in range(n):
                    sums[row] = accumulate(sums[row], column[0, row * n + j])
        log_prob[first:last] = sums


@kernel
def _backward(start, stop, x, params, dlog_prob, dx, dparams):
    d = x.shape[1]
    rows, features = _block_shape(d)
    parts = params.shape[1] // d
    components = parts // 3
    one = x.dtype.type(1)
    block, weights = np.empty((parts, WIDTH), x.dtype), np.empty((components, WIDTH), x.dtype)
    column, state = np.empty((1, WIDTH), x.dtype), np.empty((4, WIDTH), x.dtype)
    total, total_joint = state[0], state[2]
    for group in range(start, stop):
        first, last = group * rows, min((group + 1) * rows, len(x))
        for left in range(0, d, features):
            right = min(left + features, d)
            n = right - left
            size = (last - first) * n
            _load(x[first:last], left, right, column)
            _load(params[first:last], left, right, block)
            _responsibilities(column[0], block, size, weights, state)
            for row in range(last - first):
                for j in range(row * n, (row + 1) * n):
                    total[j] = dlog_prob[first + row] / total[j]
                    total_joint[j] = dlog_prob[first + row] / total_joint[j]
                    column[0, j] = 0
            for k in range(components):
                for i in range(size):
                    r, u = block[k, i] * total_joint[i], block[components + k, i]
                    dmean = r * u * block[2 * components + k, i]
                    block[k, i] = r - weights[k, i] * total[i]
                    block[components + k, i] = dmean
                    block[2 * components + k, i] = r * (u * u - one)
                    column[0, i] -= dmean
            _store(block, left, right, dparams[first:last])
            _store(column, left, right, dx[first:last])


def mixture_log_prob(x, params):
    x, params = as_contiguous(x), as_contiguous(params)
    log_prob = np.empty(len(x), x.dtype)
    run(_log_prob, _groups(x), params.size, x, params, log_prob)
    return log_prob


def mixture_backward(x, params, dlog_prob):
    x, params, dlog_prob = as_contiguous(x), as_contiguous(params), as_contiguous(dlog_prob)
    dx, dparams = np.empty_like(x), np.empty_like(params)
    run(_backward, _groups(x), params.size, x, params, dlog_prob, dx, dparams)
    return dx, dparams


def _groups(x):
    """The number of blocks of rows."""
    rows, _ = _block_shape(x.shape[1])
    return -(-len(x) // rows)


@kernel
def sample_column(noise, params, x):
    """x (n,), one draw from each of n mixtures: mixture_sample for one feature of n rows.

    noise (2, n) = normal, uniform; params (3K, n) = logits K, means K, log-scales K.
    """
    components, n = len(params) // 3, len(x)
    state = np.empty((5, n), x.dtype)
    highest, threshold, cumulated = state[0], state[1], state[2]
    mean, log_scale = state[3], state[4]
    weights = np.empty((components, n), x.dtype)
    for i in range(n):
        highest[i] = params[0, i]
        threshold[i] = cumulated[i] = 0
    for k in range(1, components):
        for i in range(n):
            highest[i] = max(highest[i], params[k, i])
    for k in range(components):
        for i in range(n):
            weights[k, i] = exp(params[k, i] - highest[i])
            threshold[i] += weights[k, i]
    for i in range(n):
        threshold[i] *= noise[1, i]
        mean[i] = params[components, i]
        log_scale[i] = params[2 * components, i]
    # The last component that begins at or below the threshold is the one that ends above it.
    for k in range(components):
        for i in range(n):
            begun = cumulated[i] <= threshold[i]
            mean[i] = params[components + k, i] if begun else mean[i]
            log_scale[i] = params[2 * components + k, i] if begun else log_scale[i]
            cumulated[i] += weights[k, i]
    for i in range(n):
        x[i] = mean[i] + exp(log_scale[i]) * noise[0, i]
