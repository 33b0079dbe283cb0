"""Convolution of channels-last images on the CPU; formulas in reference/conv.py.

A convolution is a linear layer on the k x k patches around the pixels. Its products run on the
register tiles of _gemm.py, and there are two ways to give them the patches.

Few channels on one side: the patches are made, for a few images at a time, in scratch memory that
stays in the second cache. They may be taken on either side of the product, so the thinner one is:
with W^ the weight turned by 180 degrees,

    C_in <= C_out:  y = patches(x) W             C_in > C_out:  y = add_patches(x W^)
                    dW += patches(x)^T da                       dW^ += x^T patches(da)
                    dx = add_patches(da W^T)                    dx = patches(da) W^^T

Many channels on both: a row of a patch is k pixels that lie one after the other in an image with
zeros around it, and the next pixel's is the same moved by one pixel. So overlapping rows of memory
times each row of the kernel, k products of depth k C, are the convolution, and no patch is copied.
The zeros behind a row are at once those before the next one; the pixels computed there are dropped.
dx is the same with the turned weight, and dW takes the same overlapping rows, transposed.

benchmarks/convolution_algorithms.py compares them.

Threads take blocks of images. Sums over images are kept apart in a number of groups that depends on
the shapes alone, and are added in order: the bits do not depend on the number of threads.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from npflow.kernels.cpu._gemm import (
    VECTOR_BYTES,
    VECTORS,
    add_rows,
    copy_rows,
    multiply,
    pack,
)
from npflow.kernels.cpu.linear import _PRODUCTS, _activate, _activate_backward, _code
from npflow.kernels.cpu.threads import kernel, run

_MANY = 16  # channels
_PIXELS = 196  # small images are taken together, at least this many pixels at a time
_GROUPS = 16  # of images in sums over the batch: bounds the threads of backward ...
_GROUP_WEIGHTS = 1 << 20  # ... and together, at most so many partial sums if there are more than 2


@kernel
def _pad(x, k, padded):
    """padded = the pixels of an image x (H, W, C) with r zeros behind each row; r rows, and r
    pixels, of zeros come before.
    """
    height, columns, channels = x.shape
    r = k // 2
    for i in range(height):
        row, start = x[i].reshape(-1), ((i + r) * (columns + r) + r) * channels
        for j in range(len(row)):
            padded[start + j] = row[j]


@kernel
def _drop(rows, k, x):
    """x (H, W, C) = rows ((H (W + r), C) without the r pixels behind each row."""
    height, columns, channels = x.shape
    for i in range(height):
        for j in range(columns):
            row, pixel = rows[i * (columns + k // 2) + j], x[i, j]
            for c in range(channels):
                pixel[c] = row[c]


@kernel
def _padded(height, columns, channels, k, like):
    """Zeros for _pad, and the number of pixels that are computed."""
    r = k // 2
    width = columns + r
    return np.zeros(((height + 2 * r) * width + 2 * r + k) * channels, like.dtype), height * width


@kernel
def _overlapping(padded, u, k, columns, channels, rows):
    """Row u of the patches of all pixels: (rows, k C), each the one before moved by one pixel."""
    start = padded[u * (columns + k // 2) * channels :]
    return as_strided(start, (rows, k * channels), (channels * padded.itemsize, padded.itemsize))


@kernel
def _patches(x, k, padded, out):
    """out (n, H, W, k k C): the k x k pixels around each pixel of x (n, H, W, C)."""
    n, height, columns, channels = x.shape
    width, length = columns + k // 2, k * channels
    at_once = VECTORS * VECTOR_BYTES // x.itemsize
    for image in range(n):
        _pad(x[image], k, padded)
        for u in range(k):
            seen = _overlapping(padded, u, k, columns, channels, height * width)
            for i in range(height):
                source = seen[i * width : i * width + columns]
                target = out[image, i, :, u * length : (u + 1) * length]
                for c in range(0, length, at_once):
                    copy_rows(source[:, c : c + at_once], target[:, c : c + at_once])


@kernel
def _add_patches(parts, k, padded, out):
    """The adjoint of _patches: out (n, H, W, C) = sums of parts (n, H, W, k k C).

    Of every k-th pixel at a time: their rows of the kernel do not overlap.
    """
    n, height, columns, channels = out.shape
    width, length = columns + k // 2, k * channels
    at_once = VECTORS * VECTOR_BYTES // out.itemsize
    for image in range(n):
        padded[:] = 0
        for u in range(k):
            seen = _overlapping(padded, u, k, columns, channels, height * width)
            for i in range(height):
                source = parts[image, i, :, u * length : (u + 1) * length]
                target = seen[i * width : i * width + columns]
                for j in range(min(k, columns)):
                    for c in range(0, length, at_once):
                        add_rows(source[j::k, c : c + at_once], target[j::k, c : c + at_once])
        start = (k // 2) * (width + 1) * channels
        rows = padded[start : start + height * width * channels]
        _drop(rows.reshape(-1, channels), k, out[image])
    padded[:] = 0  # _pad writes no zeros


@kernel
def _pack(matrix, width, panels):
    """Panels of `width` columns of matrix."""
    for p in range(len(panels)):
        pack(matrix[:, p * width : (p + 1) * width], panels[p])


@kernel
def _multiply(a, panels, width, added, c):
    """c = a B + added, B (depth, columns) given as panels."""
    nothing = panels[0][:, :0]
    for p in range(len(panels)):
        columns = slice(p * width, min((p + 1) * width, c.shape[1]))
        multiply(a, panels[p], c[:, columns], added[:, columns], nothing)


@kernel
def _forward(start, stop, images, x, k, panels, width, bias, activation, y):
    """[start, stop) counts blocks of `images` images."""
    n, height, columns, n_in = x.shape
    n_out = y.shape[3]
    size = images * height * columns
    on_input = n_in <= n_out
    patch = k * k * min(n_in, n_out) if k > 1 else 0
    scratch = np.empty((size, patch), x.dtype)
    padded, _ = _padded(height, columns, min(n_in, n_out), k, x)
    zeros = np.zeros((1, patch), x.dtype)
    for block in range(start, stop):
        first, last = block * images, min((block + 1) * images, n)
        rows = (last - first) * height * columns
        x_rows, y_rows = x[first:last].reshape(rows, n_in), y[first:last].reshape(rows, n_out)
        parts = scratch[:rows].reshape(last - first, height, columns, patch)
        if k == 1:
            _multiply(x_rows, panels, width, bias, y_rows)
        elif on_input:
            _patches(x[first:last], k, padded, parts)
            _multiply(scratch[:rows], panels, width, bias, y_rows)
        else:
            _multiply(x_rows, panels, width, zeros, scratch[:rows])
            _add_patches(parts, k, padded, y[first:last])
            for i in range(rows):
                for j in range(n_out):
                    y_rows[i, j] += bias[0, j]
        _activate(y_rows.reshape(-1), activation)


@kernel
def _backward(
    start, stop, groups, images, dy, x, y, k, panels, width, activation, dweights, dbiases, dx
):
    """[start, stop) counts groups of images, each with its own sums dweights and dbiases."""
    n, height, columns, n_in = x.shape
    n_out = y.shape[3]
    size = images * height * columns
    on_input = n_in <= n_out
    thin = min(n_in, n_out)
    patch = k * k * thin if k > 1 else 0
    lanes = VECTOR_BYTES // x.itemsize
    full = VECTORS * lanes
    scratch = np.empty((size, patch), x.dtype)
    padded, _ = _padded(height, columns, thin, k, x)
    da = np.empty((images, height, columns, n_out), x.dtype)
    n_panels, panel_width = _panels(dweights.shape[2], lanes)
    factor_panels = np.empty((n_panels, size, full), x.dtype)
    zeros = np.zeros((1, max(patch, n_in)), x.dtype)
    for group in range(start, stop):
        dweight, dbias = dweights[group], dbiases[group]
        dweight[:] = 0
        dbias[:] = 0
        group_end = n * (group + 1) // groups
        first = n * group // groups
        while first < group_end:
            last = min(first + images, group_end)
            rows = (last - first) * height * columns
            x_rows, dx_rows = x[first:last].reshape(rows, n_in), dx[first:last].reshape(rows, n_in)
            block_da = da[: last - first]
            da_rows = block_da.reshape(rows, n_out)
            block_dy, block_y = dy[first:last].reshape(-1), y[first:last].reshape(-1)
            _activate_backward(block_dy, block_y, activation, block_da.reshape(-1))
            for i in range(rows):
                for j in range(n_out):
                    dbias[j] += da_rows[i, j]
            parts = scratch[:rows].reshape(last - first, height, columns, patch)
            # The factors of dweight += left^T right.
            left, right = x_rows, da_rows
            if k > 1 and on_input:
                _patches(x[first:last], k, padded, parts)
                left = scratch[:rows]
            elif k > 1:
                _patches(block_da, k, padded, parts)
                right = scratch[:rows]
            for p in range(n_panels):
                pack(right[:, p * panel_width : (p + 1) * panel_width], factor_panels[p, :rows])
            _multiply(left.T, factor_panels[:, :rows], panel_width, dweight, dweight)
            if k == 1:
                _multiply(da_rows, panels, width, zeros, dx_rows)
            elif n_in < n_out:
                _multiply(da_rows, panels, width, zeros, scratch[:rows])
                _add_patches(parts, k, padded, dx[first:last])
            else:
                if on_input:
                    _patches(block_da, k, padded, parts)
                _multiply(scratch[:rows], panels, width, zeros, dx_rows)
            first = last


@kernel
def _forward_many(start, stop, x, k, panels, width, bias, activation, y):
    """[start, stop) counts images; panels (k, ...): those of each row of the kernel."""
    _, height, columns, n_in = x.shape
    padded, rows = _padded(height, columns, n_in, k, x)
    out = np.empty((rows, y.shape[3]), x.dtype)
    for image in range(start, stop):
        _pad(x[image], k, padded)
        for u in range(k):
            added = bias if u == 0 else out
            _multiply(_overlapping(padded, u, k, columns, n_in, rows), panels[u], width, added, out)
        _drop(out, k, y[image])
        _activate(y[image].reshape(-1), activation)


@kernel
def _backward_many(
    start, stop, groups, dy, x, y, k, panels, width, activation, dweights, dbiases, dx
):
    """As _backward, with dweights (groups, k, k C_in, C_out)."""
    n, height, columns, n_in = x.shape
    n_out = y.shape[3]
    r = k // 2
    lanes = VECTOR_BYTES // x.itemsize
    padded_x, rows = _padded(height, columns, n_in, k, x)
    padded_da, _ = _padded(height, columns, n_out, k, x)
    first_pixel = (r * (columns + r) + r) * n_out
    da_rows = padded_da[first_pixel : first_pixel + rows * n_out].reshape(rows, n_out)
    da = np.empty((height, columns, n_out), x.dtype)
    out = np.empty((rows, n_in), x.dtype)
    zeros = np.zeros((1, n_in), x.dtype)
    n_panels, panel_width = _panels(n_out, lanes)
    da_panels = np.empty((n_panels, rows, VECTORS * lanes), x.dtype)
    for group in range(start, stop):
        dweight, dbias = dweights[group], dbiases[group]
        dweight[:] = 0
        dbias[:] = 0
        for image in range(n * group // groups, n * (group + 1) // groups):
            _activate_backward(
                dy[image].reshape(-1), y[image].reshape(-1), activation, da.reshape(-1)
            )
            pixels = da.reshape(-1, n_out)
            for i in range(len(pixels)):
                for j in range(n_out):
                    dbias[j] += pixels[i, j]
            _pad(x[image], k, padded_x)
            _pad(da, k, padded_da)
            _pack(da_rows, panel_width, da_panels)
            for u in range(k):
                left = _overlapping(padded_x, u, k, columns, n_in, rows)
                _multiply(left.T, da_panels, panel_width, dweight[u], dweight[u])
                added = zeros if u == 0 else out
                seen = _overlapping(padded_da, u, k, columns, n_out, rows)
                _multiply(seen, panels[u], width, added, out)
            _drop(out, k, dx[image])


@kernel
def _panels(columns, lanes):
    """The number of panels for so many columns, and their width: as equal as vectors allow."""
    vectors = -(-columns // lanes)
    n = -(-vectors // VECTORS)
    return n, -(-vectors // n) * lanes


def _packed(matrix):
    """matrix as panels, and the panels' width."""
    lanes = VECTOR_BYTES // matrix.itemsize
    n, width = _panels(matrix.shape[1], lanes)
    panels = np.empty((n, len(matrix), VECTORS * lanes), matrix.dtype)
    _pack(np.ascontiguousarray(matrix), width, panels)
    return panels, width


def _images(x):
    """How many images are taken together."""
    _, height, width, _ = x.shape
    return -(-_PIXELS // (height * width))


def _many(k, n_in, n_out):
    return k > 1 and min(n_in, n_out) >= _MANY


def _packed_rows(weight):
    """_packed for each row of the kernel, (k, k C, ...), together."""
    k, _, n_in, n_out = weight.shape
    packed = [_packed(row.reshape(k * n_in, n_out)) for row in weight]
    return np.stack([panels for panels, _ in packed]), packed[0][1]


def conv_forward(x, weight, bias, activation):
    x = np.ascontiguousarray(x)
    k, _, n_in, n_out = _check(x, weight, bias)
    y = np.empty((*x.shape[:3], n_out), x.dtype)
    work = y.size * k * k * n_in // _PRODUCTS
    rest = bias.reshape(1, -1), _code(activation), y
    if _many(k, n_in, n_out):
        run(_forward_many, len(x), work, x, k, *_packed_rows(weight), *rest)
        return y
    matrix = weight.reshape(k * k * n_in, n_out)
    if n_in > n_out:
        turned = weight.reshape(k * k, n_in, n_out)[::-1]
        matrix = turned.transpose(1, 0, 2).reshape(n_in, k * k * n_out)
    images = _images(x)
    run(_forward, -(-len(x) // images), work, images, x, k, *_packed(matrix), *rest)
    return y


def conv_backward(dy, x, y, weight, activation, dweight, dbias):
    dy, x, y = np.ascontiguousarray(dy), np.ascontiguousarray(x), np.ascontiguousarray(y)
    k, _, n_in, n_out = _check(x, weight, dbias, y, dy)
    images = _images(x)
    groups = max(2, min(_GROUPS, _GROUP_WEIGHTS // weight.size))
    groups = min(groups, -(-len(x) // images))
    dbiases = np.empty((groups, n_out))
    dx = np.empty_like(x)
    work = 2 * y.size * k * k * n_in // _PRODUCTS
    turned = weight[::-1, ::-1].transpose(0, 1, 3, 2)  # of dx as a convolution of da
    if _many(k, n_in, n_out):
        dweights = np.empty((groups, k, k * n_in, n_out), x.dtype)
        arrays = dy, x, y, k, *_packed_rows(turned), _code(activation), dweights, dbiases, dx
        run(_backward_many, groups, work, groups, *arrays)
        total = dweights.sum(axis=0)
    else:
        on_input = n_in <= n_out
        if n_in < n_out or k == 1:
            matrix = weight.transpose(3, 0, 1, 2).reshape(n_out, k * k * n_in)
        else:
            matrix = turned.reshape(k * k * n_out, n_in)
        shape = (k * k * n_in, n_out) if on_input else (n_in, k * k * n_out)
        dweights = np.empty((groups, *shape), x.dtype)
        arrays = dy, x, y, k, *_packed(matrix), _code(activation), dweights, dbiases, dx
        run(_backward, groups, work, groups, images, *arrays)
        total = dweights.sum(axis=0)
        if not on_input:
            total = total.reshape(n_in, k * k, n_out)[:, ::-1].transpose(1, 0, 2)
    dweight += total.reshape(weight.shape)
    dbias += dbiases.sum(axis=0).astype(x.dtype)
    return dx


def _check(x, weight, bias, y=None, dy=None):
    """weight's shape, if all fits: compiled code would read past the end of an array that is short.

    Raises ValueError if it does not.
    """
    k, other_k, n_in, n_out = weight.shape
    fits = k == other_k and k % 2 == 1 and weight.flags.c_contiguous
    fits = fits and x.ndim == 4 and x.shape[3] == n_in and bias.shape == (n_out,)
    output = (*x.shape[:3], n_out)
    if not fits or any(array is not None and array.shape != output for array in (y, dy)):
        shapes = [array.shape for array in (x, weight, bias, y, dy) if array is not None]
        raise ValueError(
            "expected x (B, H, W, C_in), a C-contiguous weight (k, k, C_in, C_out) with an odd k, "
            f"bias (C_out,), y and dy (B, H, W, C_out); got {shapes}"
        )
    return weight.shape
