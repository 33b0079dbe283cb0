"""Random numbers on a GPU; formulas in reference/random.py."""

import cupy
import numpy as np
from cupy import ndarray
from numpy.typing import DTypeLike

from .launch import RESULT, Family, per_element

_family = Family("random")
_PARAMETERS: dict[str, str | type[np.generic]] = {
    "key0": np.uint32, "key1": np.uint32, "stream": np.uint32, "step": np.uint32,
    "blocks": np.int64, "out": RESULT,
}  # fmt: skip
_uniform = _family.kernel("uniform", **_PARAMETERS)
_normal = _family.kernel("normal", **_PARAMETERS)


def uniform(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> ndarray:
    return _draw(_uniform, size, seed, stream, step, dtype)


def normal(size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> ndarray:
    return _draw(_normal, size, seed, stream, step, dtype)


def _draw(launch, size: int, seed: int, stream: int, step: int, dtype: DTypeLike) -> ndarray:
    per_block = 16 // np.dtype(dtype).itemsize
    blocks = -(-size // per_block)
    out = cupy.empty(blocks * per_block, dtype)
    key = seed % 2**32, seed // 2**32
    launch(dtype, per_element(blocks), *key, stream, step, blocks, out)
    return out[:size]
