"""Random numbers on the CPU: Philox4x32-10 in vector registers, Box-Muller in float64.

The formulas are in reference/random.py. The loops run over blocks of four words with unsigned
indices into flat arrays: in this shape LLVM vectorises them, many blocks at a time, while a signed
index or a two-dimensional output keeps them scalar and six times slower.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from .threads import compiled, run

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)


@njit(inline="always")
def _philox4x32(block, key0, key1, step, stream):
    c0, c1, c2, c3 = np.uint32(block), np.uint32(block >> _HALF), step, stream
    for _ in range(10):
        product0, product1 = _M0 * np.uint64(c0), _M1 * np.uint64(c2)
        c0, c1 = np.uint32(product1 >> _HALF) ^ c1 ^ key0, np.uint32(product1)
        c2, c3 = np.uint32(product0 >> _HALF) ^ c3 ^ key1, np.uint32(product0)
        key0, key1 = np.uint32(key0 + _W0), np.uint32(key1 + _W1)
    return c0, c1, c2, c3


@njit(inline="always")
def _unit32(word):
    return np.float32(np.int32(word >> np.uint32(8))) * np.float32(2**-24)


@njit(inline="always")
def _unit64(high, low):
    # Signed 32-bit halves: the conversion every processor has as a vector instruction.
    high, low = np.int32(high >> np.uint32(5)), np.int32(low >> np.uint32(6))
    return (np.float64(high) * 2.0**26 + np.float64(low)) * 2.0**-53


@compiled()
def _uniform32(start, stop, key0, key1, stream, step, out):
    for block in range(np.uint64(start), np.uint64(stop)):
        w0, w1, w2, w3 = _philox4x32(block, key0, key1, step, stream)
        i = np.uint64(4) * block
        out[i] = _unit32(w0)
        out[i + np.uint64(1)] = _unit32(w1)
        out[i + np.uint64(2)] = _unit32(w2)
        out[i + np.uint64(3)] = _unit32(w3)


@compiled()
def _uniform64(start, stop, key0, key1, stream, step, out):
    for block in range(np.uint64(start), np.uint64(stop)):
        w0, w1, w2, w3 = _philox4x32(block, key0, key1, step, stream)
        i = np.uint64(2) * block
        out[i] = _unit64(w0, w1)
        out[i + np.uint64(1)] = _unit64(w2, w3)


@compiled()
def _box_muller(start, stop, out):
    """Turns the pairs start to stop of out from uniform to normal, in place."""
    for pair in range(start, stop):
        i = 2 * pair
        radius = math.sqrt(-2 * math.log(1 - np.float64(out[i])))
        angle = 2 * math.pi * np.float64(out[i + 1])
        out[i] = radius * math.cos(angle)
        out[i + 1] = radius * math.sin(angle)


def uniform(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> NDArray:
    core, per_block = (_uniform32, 4) if np.dtype(dtype) == np.float32 else (_uniform64, 2)
    blocks = -(-size // per_block)
    out = np.empty(blocks * per_block, dtype)
    words = [np.uint32(word) for word in (seed % 2**32, seed // 2**32, stream, step)]
    # Work counted in blocks: one uniform number is far cheaper than an element elsewhere.
    run(core, blocks, blocks, *words, out)
    return out[:size]


def normal(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> NDArray:
    out = uniform(size + size % 2, seed, stream, step, dtype)
    run(_box_muller, out.size // 2, out.size, out)
    return out[:size]
