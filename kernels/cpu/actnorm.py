"""Activation normalisation on the CPU.

A loop over a few channels is too short to vectorise. So x is taken as one flat array, cut into
tiles of whole rows, and the parameters are repeated to the length of a tile: then every loop is
long, with unit stride, and element j of all tiles belongs to the same channel. Sums over rows are
kept for each element of the tile, in float64, and folded to channels at the end of a block.
"""

import numpy as np
from numba.extending import register_jitable
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import exp
from npflow.kernels.cpu.threads import CHEAP, kernel, run

_TILES = 16  # tiles in a block of sums


@register_jitable(forceinline=True)
def _tile_size(channels):
    """Numbers in a tile: a multiple of the channels, and about 256."""
    return channels * max(1, 256 // channels)


@register_jitable(forceinline=True)
def _repeat(values, tile):
    """tile = values, again and again."""
    for j in range(len(tile)):
        tile[j] = values[j % len(values)]


@kernel
def _apply(start, stop, x, log_scale, subtract, add, z):
    """z = (x - subtract) e^log_scale + add, in the tiles from start to stop of the flat x."""
    size = _tile_size(len(log_scale))
    scale = np.empty_like(log_scale)
    for c in range(len(scale)):
        scale[c] = exp(log_scale[c])
    scales, subtracts, adds = np.empty((3, size), x.dtype)
    _repeat(scale, scales)
    _repeat(subtract, subtracts)
    _repeat(add, adds)
    for tile in range(start, stop):
        from_, to = x[tile * size : (tile + 1) * size], z[tile * size : (tile + 1) * size]
        for j in range(len(from_)):
            to[j] = (from_[j] - subtracts[j]) * scales[j] + adds[j]


@kernel
def _backward(start, stop, given, x, log_scale, out, parts):
    """out = given e^log_scale; parts (blocks, 2, C): the blocks' sums of given x and of given."""
    channels = len(log_scale)
    size = _tile_size(channels)
    scale = np.empty_like(log_scale)
    for c in range(channels):
        scale[c] = exp(log_scale[c])
    scales = np.empty(size, x.dtype)
    _repeat(scale, scales)
    products, sums = np.empty((2, size))
    for block in range(start, stop):
        products[...] = 0
        sums[...] = 0
        for tile in range(block * _TILES, (block + 1) * _TILES):
            first, last = tile * size, (tile + 1) * size
            given_tile, x_tile, out_tile = given[first:last], x[first:last], out[first:last]
            for j in range(len(x_tile)):
                out_tile[j] = given_tile[j] * scales[j]
                products[j] += given_tile[j] * x_tile[j]
                sums[j] += given_tile[j]
        parts[block] = 0
        for j in range(size):
            parts[block, 0, j % channels] += products[j]
            parts[block, 1, j % channels] += sums[j]


@kernel
def _reduce(parts, sign, log_scale, dlog_det, dlog_scale, dshift):
    """Add the sums, in the order of the blocks, and dlog_det to the parameters' gradients."""
    for c in range(len(log_scale)):
        product, total = 0.0, 0.0
        for block in range(len(parts)):
            product += parts[block, 0, c]
            total += parts[block, 1, c]
        scale = exp(sign * np.float64(log_scale[c]))
        if sign > 0:
            dlog_scale[c] += scale * product + dlog_det
            dshift[c] += total
        else:
            dlog_scale[c] -= product + dlog_det
            dshift[c] -= scale * total


def _run_apply(sign, x, log_scale, subtract, add):
    x, log_scale = as_contiguous(x), as_contiguous(log_scale)
    z = np.empty_like(x)
    tiles = -(-x.size // _tile_size(len(log_scale)))
    columns = sign * log_scale, as_contiguous(subtract), as_contiguous(add)
    run(_apply, tiles, x.size // CHEAP, x.reshape(-1), *columns, z.reshape(-1))
    log_det = sign * (x[0, ..., 0].size * log_scale.sum(dtype=np.float64))
    return z, np.full(len(x), log_det, x.dtype)


def _run_backward(sign, given, dlog_det, x, log_scale, dlog_scale, dshift):
    given, x, log_scale = as_contiguous(given), as_contiguous(x), as_contiguous(log_scale)
    out = np.empty_like(x)
    channels = len(log_scale)
    blocks = -(-x.size // (_TILES * _tile_size(channels)))
    parts = np.empty((blocks, 2, channels))
    arrays = given.reshape(-1), x.reshape(-1), sign * log_scale, out.reshape(-1), parts
    run(_backward, blocks, x.size // CHEAP, *arrays)
    total = float(x[0, ..., 0].size * dlog_det.sum(dtype=np.float64))
    _reduce(parts, sign, log_scale, total, dlog_scale, dshift)
    return out


def actnorm_forward(x, log_scale, shift):
    return _run_apply(1, x, log_scale, np.zeros_like(shift), shift)


def actnorm_inverse(z, log_scale, shift):
    return _run_apply(-1, z, log_scale, shift, np.zeros_like(shift))


def actnorm_backward(dz, dlog_det, x, log_scale, dlog_scale, dshift):
    return _run_backward(1, dz, dlog_det, x, log_scale, dlog_scale, dshift)


def actnorm_inverse_backward(dx, dlog_det, x, log_scale, dlog_scale, dshift):
    return _run_backward(-1, dx, dlog_det, x, log_scale, dlog_scale, dshift)
