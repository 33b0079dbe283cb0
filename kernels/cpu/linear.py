"""A linear layer with its activation on the CPU; formulas in reference/linear.py.

The three products run tile by tile on the blocks of _gemm.py, each with the operand that is read
most often packed into panels that stay in the second cache:

    y  = x W          panels of columns of W, one at a time; the next one is prefetched
    dW += x^T da      panels of columns of da
    dx = (W da^T)^T   panels of rows of da, so that W, the largest array, is read as it lies

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
from npflow.kernels.cpu.threads import kernel, run

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
IDENTITY, RELU, LEAKY_RELU, TANH, ELU = range(5)
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
LEAKY_SLOPE = 0.01

# A second thread is worth its 15 us from about 40 us of one thread's work on: the unit of work of
# threads.run is this many multiplications.
_PRODUCTS = 64
# backward takes the batch in blocks whose da, packed, fits the second cache.
_BLOCK = 1 << 17


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
        pack(weight[:, j:end], panel)
        ahead = end
        for i in range(top, bottom, ROWS):
            rows = slice(i, min(i + ROWS, bottom))
            multiply(x[rows], panel, y[rows, j:end], False, weight[:, ahead:right])
            ahead = ahead + lanes if ahead < end + full else right
    for i in range(top, bottom):
        _activate(y[i, left:right], bias[left:right], activation)


@kernel
def _activate(y, bias, activation):
    """y = act(y + bias) in place; a NaN stays one."""
    zero, one, two = y.dtype.type(0), y.dtype.type(1), y.dtype.type(2)
    slope = y.dtype.type(LEAKY_SLOPE)
    if activation == IDENTITY:
        for j in range(y.size):
            y[j] += bias[j]
    elif activation == RELU:
        for j in range(y.size):
            a = y[j] + bias[j]
            y[j] = zero if a < zero else a
    elif activation == LEAKY_RELU:
        for j in range(y.size):
            a = y[j] + bias[j]
            y[j] = a if a > zero else slope * a
    elif activation == TANH:
        for j in range(y.size):
            y[j] = tanh(y[j] + bias[j])
    else:
        for j in range(y.size):
            a = y[j] + bias[j]
            t = tanh((zero if a > zero else a) / two)
            y[j] = a if a > zero else two * t / (one - t)  # e^a - 1 without cancellation


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
    block = min(max(_BLOCK // n_out, 2 * full), 16 * full, batch)
    # An odd number of vectors a row: columns of these then lie spread over the cache.
    da = np.empty((block, (-(-n_out // lanes) | 1) * lanes), x.dtype)[:, :n_out]
    x_part = np.empty((block, (-(-(right - left) // lanes) | 1) * lanes), x.dtype)
    columns = np.empty((-(-n_out // full), block, full), x.dtype)
    rows = np.empty((-(-block // full), n_out, full), x.dtype)
    nothing = weight[:, :0]
    for first in range(0, batch, block):
        last = min(first + block, batch)
        size = last - first
        for i in range(size):
            _activate_backward(dy[first + i], y[first + i], activation, da[i])
            if start == 0:
                for j in range(n_out):
                    dbias[j] += da[i, j]
            for j in range(right - left):
                x_part[i, j] = x[first + i, left + j]
        for p in range(len(columns)):
            pack(da[:size, p * full : (p + 1) * full], columns[p])
        for i in range(left, right, ROWS):
            end = min(i + ROWS, right)
            x_tile = x_part[:size, i - left : end - left].T
            for p in range(len(columns)):
                dw = dweight[i:end, p * full : (p + 1) * full]
                multiply(x_tile, columns[p], dw, True, nothing)
        for p in range(-(-size // full)):
            pack_transposed(da[p * full : min((p + 1) * full, size)], rows[p])
        for i in range(left, right, ROWS):
            end = min(i + ROWS, right)
            for p in range(-(-size // full)):
                dx_tile = dx[first + p * full : min(first + (p + 1) * full, last), i:end]
                multiply_transposed(weight[i:end], rows[p], dx_tile)


def linear_forward(x, weight, bias, activation):
    batch, n_in, n_out = _shapes(x, weight)
    x = _contiguous_rows(x)
    y = np.empty((batch, n_out), x.dtype)
    # Few columns are not cut: each thread would read all rows for them.
    by_rows = batch >= 4 * n_out
    parts = -(-batch // ROWS) if by_rows else -(-n_out * x.itemsize // VECTOR_BYTES)
    work = batch * n_in * n_out // _PRODUCTS
    run(_forward, parts, work, by_rows, x, weight, bias, _CODES[activation], y)
    return y


def linear_backward(dy, x, y, weight, activation, dweight, dbias):
    batch, n_in, n_out = _shapes(x, weight)
    x = _contiguous_rows(x)
    dx = np.empty((batch, n_in), x.dtype)
    parts = -(-n_in * x.itemsize // VECTOR_BYTES)
    work = 2 * batch * n_in * n_out // _PRODUCTS
    run(_backward, parts, work, dy, x, y, weight, _CODES[activation], dweight, dbias, dx)
    return dx


def _shapes(x, weight):
    """(batch, n_in, n_out); compiled code would read past the end of arrays that do not fit."""
    batch, n_in = x.shape
    if weight.shape[0] != n_in or not weight.flags.c_contiguous:
        raise ValueError(f"x is {x.shape}; expected a C-contiguous weight, got {weight.shape}")
    return batch, n_in, weight.shape[1]


def _contiguous_rows(x):
    return x if x.strides[1] == x.itemsize else np.ascontiguousarray(x)
