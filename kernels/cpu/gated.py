"""The pieces of a gated residual network on the CPU; formulas in reference/gated.py.

A block of rows goes through several short passes while it lies in the first cache. Each pass writes
one array, and an exponential is taken over the flat block: such loops become full vectors while one
that writes two arrays stays scalar. In passes of their own, sums of neighbouring rows overlap too.
"""

import numpy as np
from numba.extending import register_jitable
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, sigmoid, tanh
from npflow.kernels.cpu.threads import CHEAP, add_parts, block_count, block_rows, kernel, run

# Inlined always, so that the digits do not depend on what the compiler finds worth it.
_inline = register_jitable(fastmath={"contract"}, error_model="numpy", forceinline=True)


@kernel
def _concat_elu(start, stop, x, y):
    d = x.shape[1]
    rows = block_rows(d)
    zero, half, one, two = x.dtype.type(0), x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(2)
    p, n = np.empty((rows, d), x.dtype), np.empty((rows, d), x.dtype)
    p_flat, n_flat = p.reshape(-1), n.reshape(-1)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        flat = x[first:last].reshape(-1)
        for k in range(flat.size):
            t = tanh(-half * abs(flat[k]))
            elu = two * t / (one - t)  # e^-|x| - 1, without cancellation
            p_flat[k] = flat[k] if flat[k] > zero else elu
            n_flat[k] = -flat[k] if flat[k] < zero else elu
        for i in range(first, last):
            for j in range(d):
                y[i, j] = p[i - first, j]
            for j in range(d):
                y[i, d + j] = n[i - first, j]


@kernel
def _concat_elu_backward(start, stop, dy, y, dx):
    d = dx.shape[1]
    zero, one = y.dtype.type(0), y.dtype.type(1)
    for i in range(start, stop):
        for j in range(d):
            p, n = y[i, j], y[i, d + j]
            slope_p = one if p > zero else p + one
            slope_n = one if n > zero else n + one
            dx[i, j] = dy[i, j] * slope_p - dy[i, d + j] * slope_n


@_inline
def _gated_sum(h, params, gate, s):
    """gate = sigmoid(g) and s = h + v gate, of one block."""
    n, d = h.shape
    for i in range(n):
        for j in range(d):
            gate[i, j] = params[i, d + j]
    flat = gate.reshape(-1)
    for k in range(flat.size):
        flat[k] = sigmoid(flat[k])
    for i in range(n):
        for j in range(d):
            s[i, j] = h[i, j] + params[i, j] * gate[i, j]


@_inline
def _normalize(s, epsilon, mean, per_sigma):
    """s = (s - mean) / sigma of each row, in place; mean and per_sigma are those of the rows."""
    n, d = s.shape
    for i in range(n):
        total = 0.0
        for j in range(d):
            total = accumulate(total, s[i, j])
        mean[i] = total / d
    for i in range(n):
        total, mean_i = 0.0, mean[i]
        for j in range(d):
            s[i, j] -= mean_i
            total = accumulate(total, s[i, j] * s[i, j])
        per_sigma[i] = total / d
    for i in range(n):
        per_sigma[i] = 1 / np.sqrt(per_sigma[i] + epsilon)
    for i in range(n):
        per_sigma_i = per_sigma[i]
        for j in range(d):
            s[i, j] *= per_sigma_i


@kernel
def _gated_norm(start, stop, h, params, gain, shift, epsilon, y):
    d = h.shape[1]
    rows = block_rows(d)
    gate, means = np.empty((rows, d), h.dtype), np.empty((2, rows), h.dtype)
    epsilon = h.dtype.type(epsilon)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(h))
        n, s = last - first, y[first:last]
        _gated_sum(h[first:last], params[first:last], gate[:n], s)
        _normalize(s, epsilon, means[0], means[1])
        for i in range(n):
            for j in range(d):
                s[i, j] = gain[j] * s[i, j] + shift[j]


@kernel
def _gated_norm_backward(start, stop, dy, h, params, gain, epsilon, dh, dparams, parts):
    """parts (2, blocks, C): each block's sums of dy s_hat and of dy."""
    d = h.shape[1]
    rows = block_rows(d)
    one, epsilon = h.dtype.type(1), h.dtype.type(epsilon)
    gate, s = np.empty((rows, d), h.dtype), np.empty((rows, d), h.dtype)
    means = np.empty((3, rows), h.dtype)
    mean, projection, per_sigma = means[0], means[1], means[2]
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(h))
        n = last - first
        dy_, params_ = dy[first:last], params[first:last]
        dh_, dparams_ = dh[first:last], dparams[first:last]
        _gated_sum(h[first:last], params_, gate[:n], s[:n])
        _normalize(s[:n], epsilon, mean, per_sigma)
        dgain, dshift = parts[0, block], parts[1, block]
        dgain[:], dshift[:] = 0, 0
        for i in range(n):
            for j in range(d):
                dgain[j] += dy_[i, j] * s[i, j]
        for i in range(n):
            for j in range(d):
                dshift[j] += dy_[i, j]
        for i in range(n):
            total, product = 0.0, 0.0
            for j in range(d):
                dnormalized = gain[j] * dy_[i, j]
                total = accumulate(total, dnormalized)
                product = accumulate(product, dnormalized * s[i, j])
            mean[i], projection[i] = total / d, product / d
        for i in range(n):
            mean_i, projection_i, per_sigma_i = mean[i], projection[i], per_sigma[i]
            for j in range(d):
                dnormalized = gain[j] * dy_[i, j]
                dh_[i, j] = (dnormalized - mean_i - s[i, j] * projection_i) * per_sigma_i
        for i in range(n):
            for j in range(d):
                dparams_[i, j] = dh_[i, j] * gate[i, j]
        for i in range(n):
            for j in range(d):
                dparams_[i, d + j] = dh_[i, j] * params_[i, j] * gate[i, j] * (one - gate[i, j])


def _rows(x):
    return as_contiguous(x).reshape(-1, x.shape[-1])


def concat_elu_forward(x):
    rows = _rows(x)
    y = np.empty((len(rows), 2 * rows.shape[1]), x.dtype)
    run(_concat_elu, block_count(rows), rows.size, rows, y)
    return y.reshape(*x.shape[:-1], -1)


def concat_elu_backward(dy, y):
    dy_rows, y_rows = _rows(dy), _rows(y)
    dx = np.empty((len(y_rows), y_rows.shape[1] // 2), y.dtype)
    run(_concat_elu_backward, len(dx), y.size // CHEAP, dy_rows, y_rows, dx)
    return dx.reshape(*y.shape[:-1], -1)


def gated_norm_forward(h, params, gain, shift, epsilon):
    rows = _rows(h)
    y = np.empty_like(rows)
    columns = as_contiguous(gain), as_contiguous(shift), float(epsilon)
    run(_gated_norm, block_count(rows), rows.size, rows, _rows(params), *columns, y)
    return y.reshape(h.shape)


def gated_norm_backward(dy, h, params, gain, epsilon, dgain, dshift):
    rows, param_rows = _rows(h), _rows(params)
    dh, dparams = np.empty_like(rows), np.empty_like(param_rows)
    blocks = block_count(rows)
    parts = np.empty((2, blocks, rows.shape[1]))
    args = _rows(dy), rows, param_rows, as_contiguous(gain), float(epsilon)
    run(_gated_norm_backward, blocks, rows.size, *args, dh, dparams, parts)
    add_parts(parts[0], 1, dgain)
    add_parts(parts[1], 1, dshift)
    return dh.reshape(h.shape), dparams.reshape(params.shape)
