"""A linear layer with its activation on the CPU; formulas in reference/linear.py.

The three products run tile by tile on the blocks of _gemm.py, each with the operand that is read
most often packed into panels that stay in the second cache:

    y  = x W          panels of columns of W, one at a time; the next one is prefetched
    dW += x^T da      panels of columns of da
    dx = da W^T       panels of rows of W if W is small; else
    dx = (W da^T)^T   panels of rows of da: W, the largest array, is read once and as it lies

Every element is summed over k in order, by one thread: the result depends neither on the number of
threads nor on how the work was cut.
"""

import numpy as np

from npflow.kernels.cpu._gemm import (
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    multiply,
    multiply_transposed,
    pack,
    pack_transposed,
)
from npflow.kernels.cpu.math import tanh
from npflow.kernels.cpu.threads import compiled, kernel, run

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
IDENTITY, RELU, LEAKY_RELU, TANH, ELU = range(5)
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
LEAKY_SLOPE = 0.01

# A second thread is worth its 15 us from about 40 us of one thread's work on: the unit of work of
# threads.run is this many multiplications.
_PRODUCTS = 64
# backward of a thin layer: up to this many inputs or outputs, and this many activations.
_FEW = 4
_SMALL = 1 << 18
# backward takes the batch in blocks of rows of at most this many elements of x or of da.
_BLOCK = 1 << 18


@kernel
def _forward(start, stop, by_rows, x, weight, bias, activation, y):
    """[start, stop) counts tiles of rows, or else vectors of columns."""
    batch, n_in = x.shape
    n_out = weight.shape[1]
    lanes = VECTOR_BYTES // x.itemsize
    full = VECTORS * lanes
    if by_rows:
        top, bottom, left, right = start * ROWS, min(stop * ROWS, batch), 0, n_out
    else:
        top, bottom, left, right = 0, batch, start * lanes, min(stop * lanes, n_out)
    panel = np.empty((n_in, full), x.dtype)
    for j in range(left, right, full):
        end = min(j + full, right)
        shift, tiles = bias[j:end].reshape(1, -1), y[top:bottom, j:end]
        ahead = weight[:, end : min(end + full + lanes, right)]
        if bottom - top <= 4 * ROWS and end - j == full:  # too few rows to be worth packing
            multiply(x[top:bottom], weight[:, j:end], tiles, shift, ahead)
        else:
            pack(weight[:, j:end], panel)
            multiply(x[top:bottom], panel, tiles, shift, ahead)
    if right - left == n_out:
        _activate(y[top:bottom].reshape(-1), activation)
    else:
        for i in range(top, bottom):
            _activate(y[i, left:right], activation)


@kernel
def _activate(a, activation):
    """a = act(a); a NaN stays one."""
    zero, one, two = a.dtype.type(0), a.dtype.type(1), a.dtype.type(2)
    slope = a.dtype.type(LEAKY_SLOPE)
    if activation == RELU:
        for j in range(a.size):
            a[j] = zero if a[j] < zero else a[j]
    elif activation == LEAKY_RELU:
        for j in range(a.size):
            a[j] = a[j] if a[j] > zero else slope * a[j]
    elif activation == TANH:
        for j in range(a.size):
            a[j] = tanh(a[j])
    elif activation == ELU:
        for j in range(a.size):
            t = tanh((zero if a[j] > zero else a[j]) / two)
            # 2 t / (1 - t) = e^a - 1, without cancellation
            a[j] = a[j] if a[j] > zero else two * t / (one - t)


@kernel
def _activate_backward(dy, y, activation, da):
    """da = dy act'(y)."""
    zero, one, slope = y.dtype.type(0), y.dtype.type(1), y.dtype.type(LEAKY_SLOPE)
    if activation == IDENTITY:
        for j in range(y.size):
            da[j] = dy[j]
    elif activation == RELU:
        for j in range(y.size):
            da[j] = dy[j] * (one if y[j] > zero else zero)
    elif activation == LEAKY_RELU:
        for j in range(y.size):
            da[j] = dy[j] * (one if y[j] > zero else slope)
    elif activation == TANH:
        for j in range(y.size):
            da[j] = dy[j] * ((one - y[j]) * (one + y[j]))
    else:
        for j in range(y.size):
            da[j] = dy[j] * (one if y[j] > zero else y[j] + one)


@kernel
def _backward(start, stop, dy, x, y, weight, activation, dweight, dbias, dx):
    """[start, stop) counts vectors of columns of x: rows of dweight, columns of dx."""
    batch, n_in = x.shape
    n_out = weight.shape[1]
    lanes = VECTOR_BYTES // x.itemsize
    full = VECTORS * lanes
    left, right = start * lanes, min(stop * lanes, n_in)
    block = max(1, min(max(_BLOCK // max(n_in, n_out), 2 * full), 16 * full, batch))
    da = np.empty((block, n_out), x.dtype)
    da_columns = np.empty((-(-n_out // full), block, full), x.dtype)
    panels = np.empty((-(-block // full), n_out, full), x.dtype)
    x_columns = np.empty((block, full), x.dtype)
    nothing = da[:, :0]
    zeros = np.zeros((1, full), x.dtype)
    for first in range(0, batch, block):
        last = min(first + block, batch)
        size = last - first
        block_dy, block_y = dy[first:last].reshape(-1), y[first:last].reshape(-1)
        _activate_backward(block_dy, block_y, activation, da.reshape(-1))
        if start == 0:
            for i in range(size):
                for j in range(n_out):
                    dbias[j] += da[i, j]
        for p in range(len(da_columns)):
            pack(da[:size, p * full : (p + 1) * full], da_columns[p])
        for i in range(left, right, full):
            end = min(i + full, right)
            pack(x[first:last, i:end], x_columns)
            x_tiles = x_columns[:size, : end - i].T
            for p in range(len(da_columns)):
                dw = dweight[i:end, p * full : (p + 1) * full]
                multiply(x_tiles, da_columns[p], dw, dw, nothing)
        if n_in * n_out < size * (n_in + n_out):
            for i in range(left, right, full):
                end = min(i + full, right)
                pack_transposed(weight[i:end], panels[0])
                multiply(da[:size], panels[0], dx[first:last, i:end], zeros, nothing)
            continue
        for p in range(-(-size // full)):
            pack_transposed(da[p * full : min((p + 1) * full, size)], panels[p])
        for i in range(left, right, full):
            end = min(i + full, right)
            for p in range(-(-size // full)):
                dx_tiles = dx[first + p * full : min(first + (p + 1) * full, last), i:end]
                multiply_transposed(weight[i:end], panels[p], dx_tiles)


# The compiler may reorder the sums of products, the same way at every call.
_reordering = compiled("contract", "reassoc")


@_reordering
def _backward_few_inputs(dy, x, y, weight, activation, dweight, dbias, dx):
    """One pass over the rows; a row of da is used for everything while it is at hand."""
    da = np.empty_like(y)
    _activate_backward(dy.reshape(-1), y.reshape(-1), activation, da.reshape(-1))
    sums = np.zeros_like(weight)
    bias_sum = np.zeros_like(dbias)
    for i in range(len(x)):
        for k in range(x.shape[1]):
            x_ik = x[i, k]
            for j in range(y.shape[1]):
                sums[k, j] += x_ik * da[i, j]
            total = x.dtype.type(0)
            for j in range(y.shape[1]):
                total += weight[k, j] * da[i, j]
            dx[i, k] = total
        for j in range(y.shape[1]):
            bias_sum[j] += da[i, j]
    dweight += sums
    dbias += bias_sum


@kernel
def _backward_few_outputs(dy, x, y, weight, activation, dweight, dbias, dx):
    """One pass over the rows, with the few columns of the weight laid out as rows."""
    n_in, n_out = weight.shape
    da = np.empty_like(y)
    _activate_backward(dy.reshape(-1), y.reshape(-1), activation, da.reshape(-1))
    columns = weight.T.copy()
    dcolumns = np.zeros_like(columns)
    for i in range(len(x)):
        for k in range(n_out):
            da_ik = da[i, k]
            dbias[k] += da_ik
            for j in range(n_in):
                dcolumns[k, j] += da_ik * x[i, j]
            if k == 0:
                for j in range(n_in):
                    dx[i, j] = da_ik * columns[k, j]
            else:
                for j in range(n_in):
                    dx[i, j] += da_ik * columns[k, j]
    for k in range(n_out):
        for j in range(n_in):
            dweight[j, k] += dcolumns[k, j]


def linear_forward(x, weight, bias, activation):
    x = _check(x, weight)
    (batch, n_in), n_out = x.shape, weight.shape[1]
    y = np.empty((batch, n_out), x.dtype)
    # Few columns are not cut: each thread would read all rows for them.
    by_rows = batch >= 4 * n_out
    parts = -(-batch // ROWS) if by_rows else -(-n_out * x.itemsize // VECTOR_BYTES)
    work = max(batch, ROWS) * n_in * n_out // _PRODUCTS
    run(_forward, parts, work, by_rows, x, weight, bias, _code(activation), y)
    return y


def linear_backward(dy, x, y, weight, activation, dweight, dbias):
    x = _check(x, weight)
    dy, y = np.ascontiguousarray(dy), np.ascontiguousarray(y)
    (batch, n_in), n_out = x.shape, weight.shape[1]
    dx = np.empty((batch, n_in), x.dtype)
    if min(n_in, n_out) <= _FEW and batch * max(n_in, n_out) <= _SMALL:
        backward = _backward_few_inputs if n_in <= n_out else _backward_few_outputs
        x = np.ascontiguousarray(x)
        backward(dy, x, y, weight, _code(activation), dweight, dbias, dx)
        return dx
    parts = -(-n_in * x.itemsize // VECTOR_BYTES)
    work = 2 * max(batch, ROWS) * n_in * n_out // _PRODUCTS
    run(_backward, parts, work, dy, x, y, weight, _code(activation), dweight, dbias, dx)
    return dx


def _check(x, weight):
    """x with contiguous rows, if weight fits: compiled code would read past the end of it."""
    if x.shape[1] != weight.shape[0] or not weight.flags.c_contiguous:
        raise ValueError(
            f"x is {x.shape} and weight {weight.shape} with strides {weight.strides}; "
            f"expected a C-contiguous weight with {x.shape[1]} rows"
        )
    return x if x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def _code(activation):
    if activation not in _CODES:
        raise ValueError(f"unknown activation {activation!r}")
    return _CODES[activation]
