"""Batch normalisation as a bijection, on the CPU. Every column sum is accumulated in float64."""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp, log
from npflow.kernels.cpu.threads import CHEAP, block_count, block_rows, kernel, run


@kernel
def _block_moments(start, stop, x, parts):
    """parts (blocks, 2D): each block's sums, and its sums of squares about the block's own mean."""
    d = x.shape[1]
    rows = block_rows(d)
    mean = np.empty(d)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        sums, squares = parts[block, :d], parts[block, d:]
        parts[block] = 0
        for i in range(first, last):
            for j in range(d):
                sums[j] += x[i, j]
        for j in range(d):
            mean[j] = sums[j] / (last - first)
        for i in range(first, last):
            for j in range(d):
                squares[j] += (x[i, j] - mean[j]) ** 2


@kernel
def _join_moments(parts, n, mean, var):
    """Moments of all n rows from those of the blocks (Chan, Golub and LeVeque, 1979)."""
    d = len(mean)
    rows = block_rows(d)
    for j in range(d):
        total = 0.0
        for block in range(len(parts)):
            total += parts[block, j]
        center = total / n
        squares = 0.0
        for block in range(len(parts)):
            in_block = min(rows, n - block * rows)
            squares += parts[block, d + j] + in_block * (parts[block, j] / in_block - center) ** 2
        mean[j] = center
        var[j] = squares / n


@kernel
def _apply(start, stop, sign, x, subtract, add, var, log_gamma, epsilon, z, log_det):
    """z = (x - subtract) e^(sign s) + add, log_det = sign sum s, s = log gamma - log sigma."""
    d = x.shape[1]
    sign, half, epsilon = x.dtype.type(sign), x.dtype.type(0.5), x.dtype.type(epsilon)
    scale = np.empty_like(var)
    total = 0.0
    for j in range(d):
        log_scale = sign * (log_gamma[j] - half * log(var[j] + epsilon))
        scale[j] = exp(log_scale)
        total = accumulate(total, log_scale)
    for i in range(start, stop):
        log_det[i] = total
        for j in range(d):
            z[i, j] = (x[i, j] - subtract[j]) * scale[j] + add[j]


@kernel
def _sums(start, stop, g, x, mean, dlog_det, parts):
    """parts (blocks, 2D + 1): the blocks' sums of g (x - mean), of g, and of dlog_det."""
    d = x.shape[1]
    rows = block_rows(d)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        parts[block] = 0
        for i in range(first, last):
            for j in range(d):
                parts[block, j] += g[i, j] * (x[i, j] - mean[j])
            for j in range(d):
                parts[block, d + j] += g[i, j]
            parts[block, 2 * d] += dlog_det[i]


@kernel
def _reduce(parts, sign, n, own, var, log_gamma, epsilon, dlog_gamma, dbeta, factors):
    """Adds to dlog_gamma and dbeta, and finds the factors (3, D) of _combine."""
    for block in range(1, len(parts)):
        for k in range(parts.shape[1]):
            parts[0, k] += parts[block, k]
    d = len(var)
    for j in range(d):
        sigma = np.sqrt(np.float64(var[j]) + epsilon)
        scale = exp(np.float64(log_gamma[j])) / sigma
        product, total, dlog_det = parts[0, j], parts[0, d + j], parts[0, 2 * d]
        factors[1:, j] = 0
        if sign > 0:
            dlog_scale = scale * product + dlog_det
            dlog_gamma[j] += dlog_scale
            dbeta[j] += total
            factors[0, j] = scale
            if own:
                factors[1, j] = -dlog_scale / (n * sigma * sigma)
                factors[2, j] = -scale * total / n
        else:
            dlog_gamma[j] -= product + dlog_det
            dbeta[j] -= total / scale
            factors[0, j] = 1 / scale


@kernel
def _combine(start, stop, g, x, mean, factors, out):
    """out = a g + b (x - mean) + c with the factors a, b, c of each column."""
    for i in range(start, stop):
        for j in range(x.shape[1]):
            out[i, j] = factors[0, j] * g[i, j] + (
                factors[1, j] * (x[i, j] - mean[j]) + factors[2, j]
            )


def _run_apply(sign, x, subtract, add, var, log_gamma, epsilon):
    x, subtract, add = as_contiguous(x), as_contiguous(subtract), as_contiguous(add)
    var, log_gamma = as_contiguous(var), as_contiguous(log_gamma)
    z, log_det = np.empty_like(x), np.empty(len(x), x.dtype)
    columns = subtract, add, var, log_gamma
    run(_apply, len(x), x.size // CHEAP, sign, x, *columns, float(epsilon), z, log_det)
    return z, log_det


def _run_backward(sign, g, dlog_det, x, mean, var, log_gamma, epsilon, own, dlog_gamma, dbeta):
    g, dlog_det, x = as_contiguous(g), as_contiguous(dlog_det), as_contiguous(x)
    mean, var, log_gamma = as_contiguous(mean), as_contiguous(var), as_contiguous(log_gamma)
    n, d = x.shape
    blocks = block_count(x)
    parts, factors = np.empty((blocks, 2 * d + 1)), np.empty((3, d), x.dtype)
    run(_sums, blocks, x.size // CHEAP, g, x, mean, dlog_det, parts)
    columns = var, log_gamma, float(epsilon), dlog_gamma, dbeta
    _reduce(parts, sign, n, bool(own), *columns, factors)
    out = np.empty_like(x)
    run(_combine, n, x.size // CHEAP, g, x, mean, factors, out)
    return out


def moments(x):
    x = as_contiguous(x)
    blocks, d = block_count(x), x.shape[1]
    parts, mean, var = np.empty((blocks, 2 * d)), np.empty(d, x.dtype), np.empty(d, x.dtype)
    run(_block_moments, blocks, x.size // CHEAP, x, parts)
    _join_moments(parts, len(x), mean, var)
    return mean, var


def batch_norm_forward(x, mean, var, log_gamma, beta, epsilon):
    return _run_apply(1, x, mean, beta, var, log_gamma, epsilon)


def batch_norm_inverse(z, mean, var, log_gamma, beta, epsilon):
    return _run_apply(-1, z, beta, mean, var, log_gamma, epsilon)


def batch_norm_backward(dz, dlog_det, x, mean, var, log_gamma, epsilon, own, dlog_gamma, dbeta):
    return _run_backward(1, dz, dlog_det, x, mean, var, log_gamma, epsilon, own, dlog_gamma, dbeta)


def batch_norm_inverse_backward(dx, dlog_det, x, mean, var, log_gamma, epsilon, dlog_gamma, dbeta):
    return _run_backward(
        -1, dx, dlog_det, x, mean, var, log_gamma, epsilon, False, dlog_gamma, dbeta
    )
