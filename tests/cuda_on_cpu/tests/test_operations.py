"""CuPy on the stand-in device against NumPy: the same function of the same arrays."""

import cupy
import numpy as np
import pytest

rng = np.random.default_rng(0)
SMALL = rng.standard_normal((37, 5))
OTHER = rng.standard_normal((37, 5))
POSITIVE = np.abs(SMALL) + 0.1
POSITIVE_OTHER = np.abs(OTHER) + 0.1
BIG = rng.standard_normal((3000, 33)) * 3

UNARY = ["exp", "expm1", "tanh", "abs", "sign", "floor", "square", "negative", "isfinite"]
UNARY_POSITIVE = ["log", "log1p", "sqrt", "reciprocal"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "greater"]
REDUCTIONS = ["sum", "mean", "max", "min", "prod", "var", "argmax", "any", "all"]


def put(xp, x):
    x = x.copy()
    x[xp.array([0, 2])] = 7
    x[:, 1] = x[:, 0]
    return x


def scatter_add(xp, x):
    out = xp.zeros(5, x.dtype)
    xp.add.at(out, xp.array([0, 0, 1, 4]), x[:4, 0])
    return out


def batched_matmul(xp, x, y):
    return xp.matmul(xp.stack([x, y]), xp.stack([y.T, x.T]))


def named(name, **keywords):
    return lambda xp, *arrays: getattr(xp, name)(*arrays, **keywords)


CASES = {
    **{name: (named(name), [SMALL]) for name in UNARY},
    **{name: (named(name), [POSITIVE]) for name in UNARY_POSITIVE},
    **{name: (named(name), [POSITIVE, POSITIVE_OTHER]) for name in BINARY},
    **{
        f"{name} axis {axis}": (named(name, axis=axis), [SMALL])
        for name in REDUCTIONS
        for axis in (None, 0, 1)
    },
    **{f"{name} big": (named(name, axis=0), [BIG / 40]) for name in REDUCTIONS},
    "where": (lambda xp, x: xp.where(x > 0, x, 0), [SMALL]),
    "clip": (lambda xp, x: xp.clip(x, -1, 1), [SMALL]),
    "transposed copy": (lambda xp, x: x.T.copy(), [SMALL]),
    "concatenate": (lambda xp, x: xp.concatenate([x, x], 1), [SMALL]),
    "reversed copy": (lambda xp, x: x[:, ::-1].copy(), [SMALL]),
    "strided operands": (lambda xp, x: x[::2, ::-1] * x[::2], [SMALL]),
    "index by array": (lambda xp, x: x[xp.array([3, 1, 1])], [SMALL]),
    "take": (lambda xp, x: xp.take(x, xp.array([0, 2]), axis=1), [SMALL]),
    "index by mask": (lambda xp, x: x[x > 0], [SMALL]),
    "cumsum": (lambda xp, x: xp.cumsum(x, axis=1), [SMALL]),
    "cumsum of 3000": (lambda xp, x: xp.cumsum(x[:, 0]) / 100, [BIG]),
    "broadcast": (lambda xp, x: x + x[:, :1] * x[0], [SMALL]),
    "in place": (lambda xp, x: x.copy().__iadd__(1), [SMALL]),
    "put": (put, [SMALL]),
    "scatter add": (scatter_add, [SMALL]),
    "tril": (lambda xp, x: xp.tril(x[:5]), [SMALL]),
    "logsumexp": (lambda xp, x: xp.log(xp.sum(xp.exp(x - x.max(1, keepdims=True)), 1)), [SMALL]),
    "einsum of rows": (lambda xp, x, y: xp.einsum("ij,ij->i", x, y), [SMALL, OTHER]),
    "einsum of batches": (lambda xp, x, y: xp.einsum("bi,bj->ij", x, y), [SMALL, OTHER]),
    "matmul nt": (lambda xp, x, y: x @ y.T, [SMALL, OTHER]),
    "matmul tn": (lambda xp, x, y: x.T @ y, [SMALL, OTHER]),
    "matmul of slices": (lambda xp, x, y: x[:, 1:4] @ y[:, 1:4].T, [SMALL, OTHER]),
    "matmul fortran": (lambda xp, x, y: xp.asfortranarray(x) @ y.T, [SMALL, OTHER]),
    "matmul batched": (batched_matmul, [SMALL, OTHER]),
    "matrix vector": (lambda xp, x, y: x @ y[0], [SMALL, OTHER]),
    "vector vector": (lambda xp, x, y: x[:, 0] @ y[:, 1], [SMALL, OTHER]),
    "tensordot": (lambda xp, x, y: xp.tensordot(x, y, axes=((0,), (0,))), [SMALL, OTHER]),
    "linspace": (lambda xp, x: xp.linspace(0, 1, 7), [SMALL]),
    "arange": (lambda xp, x: xp.arange(10, dtype=x.dtype), [SMALL]),
    "eye": (lambda xp, x: xp.eye(4, dtype=x.dtype), [SMALL]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_numpy(name, dtype):
    function, arrays = CASES[name]
    arrays = [array.astype(dtype) for array in arrays]
    expected = function(np, *arrays)
    found = function(cupy, *map(cupy.asarray, arrays))
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == expected.dtype
    # A big sum of either sign is ill-conditioned: its absolute error is what can be asked for.
    tolerance = dict(rtol=2e-5, atol=2e-5) if dtype == "float32" else dict(rtol=1e-11, atol=1e-12)
    if name in ("prod big", "sum big"):
        tolerance["rtol"] *= 100
    np.testing.assert_allclose(found.get(), expected, **tolerance)
