"""Random numbers without state: (seed, stream, step) names a sequence, the same on every backend.

To resume a run nothing is restored: step 1000 draws the same numbers whether steps 0 to 999 ran in
this process or not. Every draw starts at the beginning of its sequence: a shorter draw is the
beginning of a longer one, and two draws that have to be independent, uniform and normal ones too,
need different streams or steps. The generator is Philox4x32-10; kernels/reference/random.py has the
formulas and the sources.
"""

from __future__ import annotations

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from npflow.backend import Array, Backend, get_backend
from npflow.errors import ConfigurationError, DtypeError, ShapeError


class Stream(IntEnum):
    """What a draw is for, and what its step counts. Saved runs rest on these values: only add."""

    INIT = 0  # initial parameters; the parameter's index
    ORDER = 1  # the order of the training samples; the epoch
    DEQUANTIZE = 2  # noise on training data; the training step
    DEQUANTIZE_EVALUATION = 3  # noise on held-out data; the batch's index
    SAMPLE = 4  # latents of samples; the caller's choice
    PERMUTATION = 5  # fixed random permutations; the caller's choice
    MASKS = 6  # orders and degrees of MADE; the draw's number
    COMPONENT = 7  # which component of a mixture a sample is from; the caller's choice
    CONV1X1 = 8  # the rotation an invertible 1x1 convolution starts from; always 0


def uniform(
    backend: Backend, shape: tuple[int, ...], seed: int, stream: int, step: int, dtype: Any = None
) -> Array:
    """Uniform numbers in [0, 1), bit-identical on every backend.

    They are multiples of 2^-24 in float32 and of 2^-53 in float64. dtype is that of the backend
    unless given.

    Raises ConfigurationError unless 0 <= seed < 2^64 and 0 <= stream, step < 2^32, ShapeError for a
    negative length and DtypeError for a dtype other than float32 and float64.
    """
    return _draw("uniform", backend, shape, seed, stream, step, dtype)


def normal(
    backend: Backend, shape: tuple[int, ...], seed: int, stream: int, step: int, dtype: Any = None
) -> Array:
    """Standard normal numbers, the same on every backend up to rounding.

    dtype is that of the backend unless given. Raises as uniform does.
    """
    return _draw("normal", backend, shape, seed, stream, step, dtype)


def permutation(n: int, seed: int, stream: int, step: int) -> np.ndarray:
    """(n,) int64, a random order of 0 ... n - 1, on the host and the same for every backend.

    It sorts n random float64 keys; the sort is stable, so equal keys keep their order. Raises as
    uniform does.
    """
    keys = uniform(get_backend("reference"), (n,), seed, stream, step, np.float64)
    return np.argsort(keys, kind="stable")


def _draw(
    kernel: str,
    backend: Backend,
    shape: tuple[int, ...],
    seed: int,
    stream: int,
    step: int,
    dtype: Any,
) -> Array:
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32)):
        if not isinstance(value, int | np.integer) or not 0 <= value < 2**bits:
            raise ConfigurationError(
                f"{name} is {value!r}; choose a whole number from 0 to 2**{bits} - 1"
            )
    if any(length < 0 for length in shape):
        raise ShapeError(f"shape is {shape}; every length must be at least 0")
    dtype = backend.dtype if dtype is None else np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise DtypeError(f"dtype is {dtype}; choose float32 or float64")
    draw = getattr(backend.kernels, kernel)
    return draw(prod(shape), int(seed), int(stream), int(step), dtype).reshape(shape)
