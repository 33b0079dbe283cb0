"""Diagonal scaling z = x e^s on the CPU."""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp
from npflow.kernels.cpu.threads import CHEAP, add_parts, block_count, block_rows, kernel, run


@kernel
def _apply(start, stop, sign, x, log_scale, z, log_det):
    sign = x.dtype.type(sign)
    scale = np.empty_like(log_scale)
    total = 0.0
    for j in range(len(scale)):
        scale[j] = exp(sign * log_scale[j])
        total = accumulate(total, sign * log_scale[j])
    for i in range(start, stop):
        log_det[i] = total
        for j in range(len(scale)):
            z[i, j] = x[i, j] * scale[j]


@kernel
def _backward(start, stop, sign, given, out, dx, dlog_det, x, log_scale, parts):
    """given and out are dz and dx for sign 1, dx and dz for sign -1."""
    d = x.shape[1]
    rows = block_rows(d)
    sign = x.dtype.type(sign)
    scale = np.empty_like(log_scale)
    for j in range(d):
        scale[j] = exp(sign * log_scale[j])
    for block in range(start, stop):
        parts[block] = 0
        for i in range(block * rows, min((block + 1) * rows, len(x))):
            dlog_det_i = dlog_det[i]
            for j in range(d):
                out[i, j] = given[i, j] * scale[j]
            for j in range(d):
                parts[block, j] += dx[i, j] * x[i, j] + dlog_det_i


def _run_apply(sign, x, log_scale):
    x, log_scale = as_contiguous(x), as_contiguous(log_scale)
    z, log_det = np.empty_like(x), np.empty(len(x), x.dtype)
    run(_apply, len(x), x.size // CHEAP, sign, x, log_scale, z, log_det)
    return z, log_det


def _run_backward(sign, given, dlog_det, x, log_scale, dlog_scale):
    given, dlog_det = as_contiguous(given), as_contiguous(dlog_det)
    x, log_scale = as_contiguous(x), as_contiguous(log_scale)
    out = np.empty_like(x)
    dx = out if sign > 0 else given
    blocks = block_count(x)
    parts = np.empty((blocks, x.shape[1]))
    arrays = given, out, dx, dlog_det, x, log_scale, parts
    run(_backward, blocks, x.size // CHEAP, sign, *arrays)
    add_parts(parts, sign, dlog_scale)
    return out


def diagonal_forward(x, log_scale):
    return _run_apply(1, x, log_scale)


def diagonal_inverse(z, log_scale):
    return _run_apply(-1, z, log_scale)


def diagonal_backward(dz, dlog_det, x, log_scale, dlog_scale):
    return _run_backward(1, dz, dlog_det, x, log_scale, dlog_scale)


def diagonal_inverse_backward(dx, dlog_det, x, log_scale, dlog_scale):
    return _run_backward(-1, dx, dlog_det, x, log_scale, dlog_scale)
