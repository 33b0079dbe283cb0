"""A linear layer with its activation on the CPU; formulas in reference/linear.py.

The three products run tile by tile on the blocks of _gemm.py, each with the operand that is read
most often packed into panels that stay in the second cache:

    y  = x W          panels of columns of W, one at a time; the next one is prefetched
    dW += x^T da      panels of columns of da
    dx = da W^T       panels of rows of W if W is small; else
    dx = (W da^T)^T   panels of rows of da: W, the largest array, is read once and as it lies

Every element is summed over k in order, by one thread: the result depends neither on the number of
threads nor on how the work was cut.

The same code serves masked_linear.py, where `reach` is the staircase of a mask: each product leaves
out the blocks of W that are zero, and threads get equal areas of what is left. Without a mask reach
is None, which the compiler knows: nothing of the mask is left in that version.
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
# A product of its own for each part of W is worth it where it saves this many columns a part.
_GAP = 64
# The work on a panel that does not depend on its depth, as so many rows or columns more.
_FIXED = 32


@kernel
def _panel_end(reach, start, full, stop):
    """Where a panel of rows or columns ends that begins at `start`.

    With a mask, panels keep to a grid that the cut for threads may only refine: how deep a product
    goes must not depend on the cut, or a NaN could show it.
    """
    return min(start + full if reach is None else (start // full + 1) * full, stop)


@kernel
def _depth(reach, j, full, n_in, n_out):
    """The number of rows of W that the panel of column j reaches."""
    if reach is None:
        return n_in
    n = len(reach)
    left = j // full * full
    last = min(left + full, n_out) - 1
    return reach[last % n if left // n == last // n else n - 1]


@kernel
def _parts(reach, i, full, n_out):
    """The columns of each part to skip for the panel of row i, and the width of a part."""
    if reach is None:
        return 0, n_out
    skipped = np.searchsorted(reach, i // full * full, side="right")
    return skipped, len(reach) if skipped > _GAP else n_out


@kernel
def _cut(share, areas):
    """The first vector of a share, of as many nearly equal shares as there are vectors."""
    total = areas.sum()
    before = 0
    for vector in range(len(areas)):
        if (2 * before + areas[vector]) * len(areas) >= 2 * share * total:
            return vector
        before += areas[vector]
    return len(areas)


@kernel
def _cut_columns(start, stop, reach, n_in, n_out, lanes):
    """The columns of W [left, right) in the shares [start, stop)."""
    if reach is None:
        return start * lanes, min(stop * lanes, n_out)
    areas = np.empty(-(-n_out // lanes), np.intp)
    for vector in range(len(areas)):
        areas[vector] = _FIXED + _depth(reach, vector * lanes, VECTORS * lanes, n_in, n_out)
    return _cut(start, areas) * lanes, min(_cut(stop, areas) * lanes, n_out)


@kernel
def _cut_rows(start, stop, reach, n_in, n_out, lanes):
    """The rows of W [left, right) in the shares [start, stop)."""
    if reach is None:
        return start * lanes, min(stop * lanes, n_in)
    full = VECTORS * lanes
    depths = np.empty(-(-n_out // full), np.intp)
    for p in range(len(depths)):
        depths[p] = _depth(reach, p * full, full, n_in, n_out)
    areas = np.empty(-(-n_in // lanes), np.intp)
    for panel in range(0, len(areas), VECTORS):
        i = panel * lanes
        skipped, width = _parts(reach, i, full, n_out)
        of_dx, of_dweight = (width - skipped) * (n_out // width), full * np.sum(depths > i)
        areas[panel : panel + VECTORS] = _FIXED + of_dx + of_dweight
    return _cut(start, areas) * lanes, min(_cut(stop, areas) * lanes, n_in)


@kernel
def _columns_reach(reach, n_out):
    """The reach of each column of all parts."""
    if reach is None:
        return None
    all_reach = np.empty(n_out, reach.dtype)
    for part in range(0, n_out, len(reach)):
        all_reach[part : part + len(reach)] = reach
    return all_reach


@kernel
def _clear(block, top, left, all_reach):
    """Zeros outside the mask in the block of dweight that begins at [top, left]."""
    if all_reach is None:
        return
    reach, zero = all_reach[left : left + block.shape[1]], block.dtype.type(0)
    if reach.min() >= top + len(block):
        return
    for i in range(len(block)):
        for j in range(len(reach)):
            block[i, j] = block[i, j] if top + i < reach[j] else zero


@kernel
def _forward(start, stop, by_rows, x, weight, bias, reach, activation, y):
    """[start, stop) counts tiles of rows, or else shares of the columns."""
    batch, n_in = x.shape
    n_out = weight.shape[1]
    lanes = VECTOR_BYTES // x.itemsize
    full = VECTORS * lanes
    if by_rows:
        top, bottom, left, right = start * ROWS, min(stop * ROWS, batch), 0, n_out
    else:
        left, right = _cut_columns(start, stop, reach, n_in, n_out, lanes)
        top, bottom = 0, batch
    panel = np.empty((n_in, full), x.dtype)
    j = left
    while j < right:
        end = _panel_end(reach, j, full, right)
        depth = _depth(reach, j, full, n_in, n_out)
        x_tiles = x[top:bottom, :depth]
        shift, tiles = bias[j:end].reshape(1, -1), y[top:bottom, j:end]
        ahead = weight[:, end : min(end + full + lanes, right)]
        if bottom - top <= 4 * ROWS and end - j == full:  # too few rows to be worth packing
            multiply(x_tiles, weight[:, j:end], tiles, shift, ahead)
        else:
            pack(weight[:depth, j:end], panel)
            multiply(x_tiles, panel, tiles, shift, ahead)
        j = end
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
def _backward(start, stop, dy, x, y, weight, reach, activation, dweight, dbias, dx):
    """[start, stop) counts shares of the columns of x: rows of W and dweight."""
    batch, n_in = x.shape
    n_out = weight.shape[1]
    lanes = VECTOR_BYTES // x.itemsize
    full = VECTORS * lanes
    all_reach = _columns_reach(reach, n_out)
    left, right = _cut_rows(start, stop, reach, n_in, n_out, lanes)
    block = max(1, min(max(_BLOCK // max(n_in, n_out), 2 * full), 16 * full, batch))
    da = np.empty((block, n_out), x.dtype)
    da_columns = np.empty((-(-n_out // full), block, full), x.dtype)
    panels = np.empty((-(-block // full), n_out, full), x.dtype)
    x_columns = np.empty((block, full), x.dtype)
    nothing = da[:, :0]
    for above in range(0, batch, block):
        below = min(above + block, batch)
        size = below - above
        block_dy, block_y = dy[above:below].reshape(-1), y[above:below].reshape(-1)
        _activate_backward(block_dy, block_y, activation, da.reshape(-1))
        if start == 0:
            for i in range(size):
                for j in range(n_out):
                    dbias[j] += da[i, j]
        for p in range(len(da_columns)):
            if _depth(reach, p * full, full, n_in, n_out) > left:
                pack(da[:size, p * full : (p + 1) * full], da_columns[p])
        i = left
        while i < right:
            end = _panel_end(reach, i, full, right)
            pack(x[above:below, i:end], x_columns)
            x_tiles = x_columns[:size, : end - i].T
            for p in range(len(da_columns)):
                j = p * full
                depth = min(_depth(reach, j, full, n_in, n_out), end)
                if depth > i:
                    dw = dweight[i:depth, j : j + full]
                    multiply(x_tiles[: depth - i], da_columns[p], dw, dw, nothing)
                    _clear(dw, i, j, all_reach)
            i = end
        block_dx = dx[above:below]
        if n_in * n_out < size * (n_in + n_out):
            _dx_of_small_weight(left, right, da[:size], weight, reach, panels[0], block_dx)
        else:
            _dx_of_large_weight(left, right, da[:size], weight, reach, panels, x_columns, block_dx)


@kernel
def _dx_of_small_weight(left, right, da, weight, reach, panel, dx):
    """dx = da W^T, columns [left, right)."""
    n_out, full = panel.shape
    zeros = np.zeros((1, full), dx.dtype)
    nothing = da[:, :0]
    i = left
    while i < right:
        end = _panel_end(reach, i, full, right)
        dx_tiles = dx[:, i:end]
        skipped, width = _parts(reach, i, full, n_out)
        for part in range(0, n_out, width):
            j, j_end = part + skipped, part + width
            pack_transposed(weight[i:end, j:j_end], panel)
            if part == 0:
                multiply(da[:, j:j_end], panel, dx_tiles, zeros, nothing)
            else:
                multiply(da[:, j:j_end], panel, dx_tiles, dx_tiles, nothing)
        i = end


@kernel
def _dx_of_large_weight(left, right, da, weight, reach, panels, part_dx, dx):
    """dx = (W da^T)^T, columns [left, right)."""
    size, n_out = da.shape
    full = panels.shape[2]
    for p in range(-(-size // full)):
        pack_transposed(da[p * full : min((p + 1) * full, size)], panels[p])
    i = left
    while i < right:
        end = _panel_end(reach, i, full, right)
        skipped, width = _parts(reach, i, full, n_out)
        for part in range(0, n_out, width):
            j, j_end = part + skipped, part + width
            for p in range(-(-size // full)):
                dx_tiles = dx[p * full : min((p + 1) * full, size), i:end]
                if part == 0:
                    multiply_transposed(weight[i:end, j:j_end], panels[p, j:j_end], dx_tiles)
                    continue
                added = part_dx[: dx_tiles.shape[0], : end - i]
                multiply_transposed(weight[i:end, j:j_end], panels[p, j:j_end], added)
                for row in range(added.shape[0]):
                    for column in range(added.shape[1]):
                        dx_tiles[row, column] += added[row, column]
        i = end


# The compiler may reorder the sums of products, the same way at every call.
_reordering = compiled("contract", "reassoc")


@_reordering
def _backward_few_inputs(dy, x, y, weight, reach, activation, dweight, dbias, dx):
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
    _clear(dweight, 0, 0, _columns_reach(reach, dweight.shape[1]))


@kernel
def _backward_few_outputs(dy, x, y, weight, reach, activation, dweight, dbias, dx):
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
    _clear(dweight, 0, 0, _columns_reach(reach, dweight.shape[1]))


def linear_forward(x, weight, bias, activation):
    return forward(x, weight, bias, None, activation)


def linear_backward(dy, x, y, weight, activation, dweight, dbias):
    return backward(dy, x, y, weight, None, activation, dweight, dbias)


def forward(x, weight, bias, reach, activation):
    x = _check(x, weight)
    (batch, n_in), n_out = x.shape, weight.shape[1]
    y = np.empty((batch, n_out), x.dtype)
    # Few columns are not cut: each thread would read all rows for them.
    by_rows = batch >= 4 * n_out
    parts = -(-batch // ROWS) if by_rows else -(-n_out * x.itemsize // VECTOR_BYTES)
    work = max(batch, ROWS) * n_in * n_out // _PRODUCTS
    run(_forward, parts, work, by_rows, x, weight, bias, reach, _code(activation), y)
    return y


def backward(dy, x, y, weight, reach, activation, dweight, dbias):
    x = _check(x, weight)
    dy, y = np.ascontiguousarray(dy), np.ascontiguousarray(y)
    (batch, n_in), n_out = x.shape, weight.shape[1]
    dx = np.empty((batch, n_in), x.dtype)
    code = _code(activation)
    if min(n_in, n_out) <= _FEW and batch * max(n_in, n_out) <= _SMALL:
        few = _backward_few_inputs if n_in <= n_out else _backward_few_outputs
        few(dy, np.ascontiguousarray(x), y, weight, reach, code, dweight, dbias, dx)
        return dx
    work = 2 * max(batch, ROWS) * n_in * n_out // _PRODUCTS
    parts = -(-n_in * x.itemsize // VECTOR_BYTES)
    run(_backward, parts, work, dy, x, y, weight, reach, code, dweight, dbias, dx)
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
