"""The affine map z = x e^s + shift on the CPU.

A block of rows goes through several short passes in the cache instead of one fused loop: the exp
and tanh passes then run over the block as one flat array, in full vectors however small d is.
"""

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp_in_place, tanh_in_place
from npflow.kernels.cpu.threads import add_parts, block_count, block_rows, kernel, run


@kernel
def _apply(start, stop, sign, x, params, bound, z, log_det, tanh):
    """sign 1: z = x e^s + shift; sign -1: z = (x - shift) e^-s."""
    d = x.shape[1]
    rows = block_rows(d)
    sign = x.dtype.type(sign)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        for i in range(first, last):
            for j in range(d):
                tanh[i, j] = params[i, d + j]
        tanh_in_place(tanh[first:last])
        for i in range(first, last):
            total = 0.0
            for j in range(d):
                log_scale = sign * bound[j] * tanh[i, j]
                z[i, j] = log_scale
                total = accumulate(total, log_scale)
            log_det[i] = total
        exp_in_place(z[first:last])
        for i in range(first, last):
            if sign > 0:
                for j in range(d):
                    z[i, j] = x[i, j] * z[i, j] + params[i, j]
            else:
                for j in range(d):
                    z[i, j] = (x[i, j] - params[i, j]) * z[i, j]


@kernel
def _backward(start, stop, sign, given, out, dx, dlog_det, x, tanh, bound, dparams, parts):
    """given and out are dz and dx for sign 1, dx and dz for sign -1."""
    d = x.shape[1]
    rows = block_rows(d)
    sign, one = x.dtype.type(sign), x.dtype.type(1)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        for i in range(first, last):
            for j in range(d):
                out[i, j] = sign * bound[j] * tanh[i, j]
        exp_in_place(out[first:last])
        parts[block] = 0
        for i in range(first, last):
            dlog_det_i = dlog_det[i]
            for j in range(d):
                found = given[i, j] * out[i, j]
                out[i, j] = found
                dparams[i, j] = given[i, j] if sign > 0 else -found  # sign dz
            for j in range(d):  # few arrays a loop: LLVM gives up where many could overlap
                dlog_scale = sign * (dx[i, j] * x[i, j] + dlog_det_i)
                parts[block, j] += dlog_scale * tanh[i, j]
                dparams[i, d + j] = dlog_scale * bound[j] * (one - tanh[i, j] * tanh[i, j])


def _run_apply(sign, x, params, bound):
    x, params, bound = as_contiguous(x), as_contiguous(params), as_contiguous(bound)
    z, log_det, tanh = np.empty_like(x), np.empty(len(x), x.dtype), np.empty_like(x)
    run(_apply, block_count(x), x.size, sign, x, params, bound, z, log_det, tanh)
    return z, log_det, tanh


def _run_backward(sign, given, dlog_det, x, tanh, bound, dbound):
    given, dlog_det, x = as_contiguous(given), as_contiguous(dlog_det), as_contiguous(x)
    tanh, bound = as_contiguous(tanh), as_contiguous(bound)
    rows, d = x.shape
    out, dparams = np.empty_like(x), np.empty((rows, 2 * d), x.dtype)
    dx = out if sign > 0 else given
    blocks = block_count(x)
    parts = np.empty((blocks, d))
    arrays = given, out, dx, dlog_det, x, tanh, bound, dparams, parts
    run(_backward, blocks, x.size, sign, *arrays)
    add_parts(parts, 1, dbound)
    return out, dparams


def affine_forward(x, params, bound):
    return _run_apply(1, x, params, bound)


def affine_inverse(z, params, bound):
    return _run_apply(-1, z, params, bound)


def affine_backward(dz, dlog_det, x, tanh, bound, dbound):
    return _run_backward(1, dz, dlog_det, x, tanh, bound, dbound)


def affine_inverse_backward(dx, dlog_det, x, tanh, bound, dbound):
    return _run_backward(-1, dx, dlog_det, x, tanh, bound, dbound)
