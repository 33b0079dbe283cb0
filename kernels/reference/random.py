"""Random numbers as a pure function of where they stand: Philox4x32-10 and Box-Muller.

A stream is named by (seed, stream, step) and has no state. Its words come in blocks of four:

    words[4 b : 4 b + 4] = philox4x32(counter=(b mod 2^32, b div 2^32, step, stream), key=seed)

with seed a 64-bit key (low word first), stream and step 32-bit numbers, b the block's index.
Element i of a draw depends on (seed, stream, step, i) alone: a shorter draw is the beginning of a
longer one, and blocks may be made in any order, by any number of threads.

    float32 uniform   u[i] = (words[i] >> 8) 2^-24
    float64 uniform   u[i] = ((words[2 i] >> 5) 2^26 + (words[2 i + 1] >> 6)) 2^-53
    normal            radius = sqrt(-2 log(1 - u[2 p])),  angle = 2 pi u[2 p + 1]
                      (n[2 p], n[2 p + 1]) = radius (cos angle, sin angle)

Every step of a uniform is exact, so all versions agree bit for bit. 1 - u is exact too and lies
in (0, 1]: no log of zero. Its smallest value bounds the normals by sqrt(48 log 2) = 5.77 in float32
and by sqrt(106 log 2) = 8.57 in float64.

Sources: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3
(Philox); Box, Muller 1958, "A note on the generation of random normal deviates".
"""

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, in 32 bits
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox: counters (4, ...) and one key of two 32-bit words -> words (4, ...)."""
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # 64 bits each
        c0, c1 = (product1 >> _HALF) ^ c1 ^ np.uint64(k0), product1 & _LOW
        c2, c3 = (product0 >> _HALF) ^ c3 ^ np.uint64(k1), product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) % 2**32, (k1 + _WEYL[1]) % 2**32
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def uniform(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> NDArray:
    """(size,) uniform numbers in [0, 1): multiples of 2^-24 in float32, of 2^-53 in float64."""
    per_block = 4 if np.dtype(dtype) == np.float32 else 2
    block = np.arange(-(-size // per_block), dtype=np.uint64)
    counter = np.empty((4, block.size), np.uint32)
    counter[0], counter[1], counter[2], counter[3] = block & _LOW, block >> _HALF, step, stream
    words = philox4x32(counter, (seed % 2**32, seed // 2**32)).T.ravel()
    if per_block == 4:
        u = (words >> 8).astype(np.float32) * np.float32(2**-24)
    else:
        u = ((words[0::2] >> 5) * 2.0**26 + (words[1::2] >> 6)) * 2.0**-53
    return u[:size]


def normal(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> NDArray:
    """(size,) standard normal numbers, computed in float64 and rounded once to dtype."""
    u = uniform(size + size % 2, seed, stream, step, dtype).astype(np.float64)
    radius = np.sqrt(-2 * np.log(1 - u[0::2]))
    angle = 2 * np.pi * u[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.ravel()[:size].astype(dtype)
