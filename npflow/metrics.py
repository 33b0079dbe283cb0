"""Figures of merit: bits per dimension, its inverse, and the standard error of a mean."""

import math
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npflow.errors import ConfigurationError, NonFiniteError, ShapeError

Value = TypeVar("Value", float, NDArray[np.floating])


def bits_per_dim(nll: Value, features: int) -> Value:
    """Bits per dimension of a density over the 8-bit space [0, 256): nll / (features · ln 2).

    npflow's image flows take x = v + u with integer pixels v in 0..255 and u uniform on [0, 1),
    so a unit cell is one pixel value and E[-log p(x)] bounds the discrete code length from
    above (Theis et al., arXiv:1511.01844, section 3.1). A density over [0, 1), of x / 256, has
    an nll smaller by features · ln 256; such figures need + 8 bits to be compared with these.

    Args:
        nll: -log p(x) in nats, one number or an array of any shape.
        features: number of dimensions of one sample (28 · 28 = 784 for MNIST).

    Raises:
        ConfigurationError: features is less than 1.
    """
    return nll / _nats_per_bit_per_dim(features)


def nats(bits: Value, features: int) -> Value:
    """The inverse of `bits_per_dim`: bits · features · ln 2, in nats a sample.

    Raises:
        ConfigurationError: features is less than 1.
    """
    return bits * _nats_per_bit_per_dim(features)


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent values, s / √N with the unbiased variance s².

    Args:
        values: shape (N,), N >= 2; accumulated in float64 whatever the dtype.

    Raises:
        ShapeError: values is not a vector of at least two.
        NonFiniteError: a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ShapeError(
            f"standard_error: values has shape {values.shape}, expected (N,) with N >= 2; "
            "give one value a sample"
        )
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise NonFiniteError(
            f"standard_error: {bad} of {values.size} values are NaN or infinite, expected finite "
            "ones; find the samples they belong to"
        )
    return float(values.std(ddof=1) / math.sqrt(values.size))


def _nats_per_bit_per_dim(features: int) -> float:
    if features < 1:
        raise ConfigurationError(
            f"features is {features}, expected at least 1; give the dimensions of one sample"
        )
    return features * math.log(2.0)
