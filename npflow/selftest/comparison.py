"""A kernel of a backend against kernels/reference, on one example call.

The arguments are rounded to the backend's dtype, and the reference works in float64 on these very
numbers: what it finds is the truth up to rounding. Compared are the results and the array
arguments, since accumulators are added to in place and what is only read must stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npflow.backend import Backend, get_backend
from npflow.selftest.examples import Arguments

# The largest error allowed, in units of float32's spacing. In float64 it is four times as many of
# that one's: there the reference rounds as much as the kernel. An error is relative to the number's
# absolute value and a tenth of the largest in its array.
TOLERANCE = 32
TOLERANCES = {
    **dict.fromkeys(("uniform", "split", "merge", "permute"), 0),  # nothing is rounded
    **dict.fromkeys(  # sums of products, in the dtype
        (
            "linear_forward", "linear_backward", "masked_linear_forward", "masked_linear_backward",
            "conv_forward", "conv_backward", "mix_forward", "mix_backward",
            "autoregressive_inverse", "autoregressive_inverse_backward",
        ),
        128,
    ),
    **dict.fromkeys(  # the place in a narrow bin magnifies the rounding of its edges
        (
            "rational_quadratic_forward", "rational_quadratic_inverse",
            "rational_quadratic_backward", "rational_quadratic_inverse_backward",
        ),
        512,
    ),
}  # fmt: skip
OVERWRITE_DY = ("linear_backward", "masked_linear_backward", "conv_backward")  # the first argument


class Comparison(NamedTuple):
    """How far a kernel is off."""

    error: float  # the largest one
    tolerance: float
    problem: str | None = None  # what is wrong besides the numbers

    @property
    def ok(self) -> bool:
        return self.problem is None and self.error <= self.tolerance


def compare(backend: Backend, name: str, arguments: Arguments) -> Comparison:
    """Call the kernel `name` of the backend, and of the reference, as in `examples`.

    Whatever the kernel raises becomes the comparison's problem.
    """
    spacings = TOLERANCES.get(name, TOLERANCE) * (1 if backend.dtype == np.float32 else 4)
    tolerance = spacings * float(np.finfo(backend.dtype).eps)
    given = rounded(arguments, backend.dtype)
    truth = on_arrays(lambda a: _as(a, np.dtype(np.float64)), given)
    expected = arrays_of(getattr(get_backend("reference").kernels, name)(*truth))
    try:
        device = on_arrays(backend.xp.array, given)
        results = getattr(backend.kernels, name)(*device)
        found = [backend.to_numpy(a) for a in arrays_of(results, backend.xp.ndarray)]
        left = [backend.to_numpy(a) for a in arrays_of(device, backend.xp.ndarray)]
    except Exception as error:  # a compiler's or a driver's, say: this kernel does not work
        return Comparison(np.inf, tolerance, f"{type(error).__name__}: {error}")

    if len(found) != len(expected):
        return Comparison(np.inf, tolerance, f"{len(found)} results; expected {len(expected)}")
    pairs = [(f"result {k}", *pair) for k, pair in enumerate(zip(found, expected, strict=True))]
    arguments_after = zip(left, arrays_of(truth), arrays_of(given), strict=True)
    for k, (mine, right, before) in enumerate(arguments_after):
        label = f"array argument {k}"
        if not np.array_equal(right, before, equal_nan=True):
            pairs.append((label, mine, right))
        elif (k > 0 or name not in OVERWRITE_DY) and not np.array_equal(
            mine, before, equal_nan=True
        ):
            return Comparison(np.inf, tolerance, f"{label} was changed")
    for label, mine, right in pairs:
        dtype = backend.dtype if right.dtype.kind == "f" else right.dtype
        if mine.dtype != dtype or mine.shape != right.shape:
            problem = f"{label} is {mine.dtype} {mine.shape}; expected {dtype} {right.shape}"
            return Comparison(np.inf, tolerance, problem)
    return Comparison(max((_error(*pair) for _, *pair in pairs), default=0.0), tolerance)


def rounded(arguments: Arguments, dtype: np.dtype) -> Arguments:
    """A copy with floating-point arrays, and dtypes, of this dtype."""
    copies = on_arrays(lambda a: _as(a, dtype), arguments)
    return tuple(dtype if isinstance(a, np.dtype) else a for a in copies)


def on_arrays(function: Callable[[Any], Any], value: Any) -> Any:
    """value, nested tuples, with function(array) in the place of each array."""
    if isinstance(value, tuple):
        return tuple(on_arrays(function, part) for part in value)
    return function(value) if isinstance(value, np.ndarray) else value


def arrays_of(value: Any, kind: type = np.ndarray) -> list[Any]:
    """The arrays in nested tuples, in order."""
    if isinstance(value, tuple):
        return [array for part in value for array in arrays_of(part, kind)]
    return [value] if isinstance(value, kind) else []


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy, of dtype unless it is of integers."""
    return array.astype(dtype if array.dtype.kind == "f" else array.dtype, order="C")


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, infinite where anything is or should be and the other is not the same."""
    finite = np.isfinite(expected)
    others = found[~finite], expected[~finite]
    if not np.array_equal(*others, equal_nan=True) or not np.isfinite(found[finite]).all():
        return np.inf
    size = np.abs(expected[finite]).astype(np.float64)
    size += 0.1 * size.max(initial=0)
    off = np.abs(found[finite] - expected[finite])
    return float((off / np.where(size > 0, size, 1)).max(initial=0))
