"""The linear layer: reference against loops and finite differences, Numba against reference."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads
from npflow.kernels.reference.linear import LEAKY_SLOPE

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
SCALAR = {
    "identity": lambda a: a,
    "relu": lambda a: a if a > 0 else 0.0,
    "leaky_relu": lambda a: a if a > 0 else LEAKY_SLOPE * a,
    "tanh": np.tanh,
    "elu": lambda a: a if a > 0 else np.exp(a) - 1,
}
# Each crosses an edge of the Numba kernels: one row, one column, whole and broken tiles and panels,
# several blocks of rows, W packed and W read as it lies.
SHAPES = [
    (1, 1, 1), (1, 70, 300), (8, 16, 48), (9, 17, 49), (33, 64, 2), (257, 1, 64), (96, 49, 33),
    (40, 3, 100), (1000, 5, 7), (130, 300, 250), (97, 1100, 50), (60, 40, 1500),
]  # fmt: skip


def layer(batch, n_in, n_out, dtype=np.float64, seed=0, padding=0):
    """x (a view into wider rows), weight, bias, dy and gradients that are not zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, n_in + padding))
    weight = rng.normal(size=(n_in, n_out)) / np.sqrt(n_in)
    bias, dbias = rng.normal(size=(2, n_out))
    dy = rng.normal(size=(batch, n_out))
    dweight = rng.normal(size=(n_in, n_out))
    x, *others = (a.astype(dtype) for a in (x, weight, bias, dy, dweight, dbias))
    return x[:, :n_in], *others


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_forward_is_the_formula(activation):
    x, weight, bias, *_ = layer(3, 4, 5)
    y = reference.linear_forward(x, weight, bias, activation)
    for i in range(3):
        for j in range(5):
            a = sum(x[i, k] * weight[k, j] for k in range(4)) + bias[j]
            assert y[i, j] == pytest.approx(SCALAR[activation](a), rel=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_backward_is_the_gradient(activation):
    x, weight, bias, dy, dweight, dbias = layer(3, 4, 5)
    y = reference.linear_forward(x, weight, bias, activation)
    before = dweight.copy(), dbias.copy()
    dx = reference.linear_backward(dy.copy(), x, y, weight, activation, dweight, dbias)
    gradients = (dx, dweight - before[0], dbias - before[1])
    for array, gradient in zip((x, weight, bias), gradients, strict=True):
        for index in np.ndindex(array.shape):
            center, step, sides = array[index], 1e-6, []
            for value in (center + step, center - step):
                array[index] = value
                y = reference.linear_forward(x, weight, bias, activation)
                sides.append(np.sum(dy * y))
            array[index] = center
            difference = (sides[0] - sides[1]) / (2 * step)
            assert gradient[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


def assert_sums_close(given, expected, magnitude):
    """given is a sum computed in its dtype; magnitude is the sum of the terms' absolute values."""
    error = np.abs(given - expected)
    assert np.all(error <= 8 * np.finfo(given.dtype).eps * magnitude), np.max(error / magnitude)


def check_parity(batch, n_in, n_out, dtype, activation, padding, seed):
    x, weight, bias, dy, dweight, dbias = layer(batch, n_in, n_out, dtype, seed, padding)
    exact = [a.astype(np.float64) for a in (x, weight, bias, dy, dweight, dbias)]
    x64, weight64, bias64, dy64, dweight64, dbias64 = exact

    y = cpu.linear_forward(x, weight, bias, activation)
    assert y.dtype == dtype
    size = np.abs(x64) @ np.abs(weight64) + np.abs(bias64)
    assert_sums_close(y, reference.linear_forward(*exact[:3], activation), size)

    y64 = y.astype(np.float64)
    size_dweight = np.abs(x64.T) @ np.abs(dy64) + np.abs(dweight64)
    size_dbias = np.abs(dy64).sum(axis=0) + np.abs(dbias64)
    size_dx = np.abs(dy64) @ np.abs(weight64.T)
    dx = cpu.linear_backward(dy, x, y, weight, activation, dweight, dbias)
    dx64 = reference.linear_backward(dy64, x64, y64, weight64, activation, dweight64, dbias64)
    assert dx.dtype == dtype
    assert_sums_close(dx, dx64, size_dx)
    assert_sums_close(dweight, dweight64, size_dweight)
    assert_sums_close(dbias, dbias64, size_dbias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_is_reference_at_the_edges(shape, dtype):
    for activation in ACTIVATIONS:
        check_parity(*shape, dtype, activation, padding=3, seed=1)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 150),
    n_in=st.integers(1, 150),
    n_out=st.integers(1, 150),
    dtype=st.sampled_from([np.float32, np.float64]),
    activation=st.sampled_from(ACTIVATIONS),
    padding=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 1000),
)
def test_cpu_is_reference(batch, n_in, n_out, dtype, activation, padding, seed):
    check_parity(batch, n_in, n_out, dtype, activation, padding, seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tolerance_rejects_one_lost_term(dtype):
    x, weight, bias, *_ = layer(9, 150, 50, dtype)
    y = cpu.linear_forward(x, weight, bias, "identity")
    exact = x.astype(np.float64) @ weight + bias
    size = np.abs(x) @ np.abs(weight) + np.abs(bias)
    assert_sums_close(y, exact, size)
    for k in (0, 149):
        with pytest.raises(AssertionError):
            assert_sums_close(y, exact - np.outer(x[:, k], weight[k]), size)


@pytest.mark.parametrize("shape", [(130, 300, 250), (700, 33, 40), (9, 200, 700)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(shape, dtype, monkeypatch):
    monkeypatch.setattr(threads, "THRESHOLD", 1)
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(threads, "THREADS", count)
        monkeypatch.setattr(threads, "_pool", None)
        x, weight, bias, dy, dweight, dbias = layer(*shape, dtype)
        y = cpu.linear_forward(x, weight, bias, "tanh")
        dx = cpu.linear_backward(dy, x, y, weight, "tanh", dweight, dbias)
        results.append((y, dx, dweight, dbias))
        if threads._pool is not None:
            threads._pool.shutdown()
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_output_of_an_identity_layer_is_not_read_by_backward():
    x, weight, _, dy, *gradients = layer(20, 10, 30)
    dx = cpu.linear_backward(dy, x, dy, weight, "identity", *gradients)
    np.testing.assert_allclose(dx, dy @ weight.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["x", "weight", "dy"])
def test_arrays_in_any_order_of_memory(name):
    """x and dy may lie in memory in any way; a weight that does not fit is refused."""
    x, weight, bias, dy, dweight, dbias = layer(20, 10, 30)
    arrays = {"x": x, "weight": weight, "dy": dy}
    turned = arrays | {name: np.asfortranarray(arrays[name])}
    if name == "weight":
        with pytest.raises(ValueError, match="C-contiguous"):
            cpu.linear_forward(x, turned["weight"], bias, "relu")
        return
    y = cpu.linear_forward(turned["x"], weight, bias, "relu")
    np.testing.assert_array_equal(y, cpu.linear_forward(x, weight, bias, "relu"))
    results = []
    for order in (arrays, turned):
        dw, db = dweight.copy(), dbias.copy()
        dx = cpu.linear_backward(order["dy"], order["x"], y, weight, "relu", dw, db)
        results.append((dx, dw, db))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_stay_visible(activation):
    x, weight, bias, *_ = layer(3, 4, 50)
    x[1, 2] = np.nan
    bias[7] = np.inf
    y = cpu.linear_forward(x, weight, bias, activation)
    assert np.all(np.isnan(y[1]))
    assert np.all(y[[0, 2], 7] == (1 if activation == "tanh" else np.inf))


@pytest.mark.parametrize("kernels", [reference, cpu])
def test_bad_input_is_refused(kernels):
    x, weight, bias, *_ = layer(3, 4, 5)
    with pytest.raises(ValueError, match="softplus"):
        kernels.linear_forward(x, weight, bias, "softplus")
    with pytest.raises(ValueError):
        kernels.linear_forward(x[:, :3], weight, bias, "relu")


def test_an_empty_batch_gives_empty_arrays():
    x, weight, bias, dy, dweight, dbias = layer(3, 4, 5)
    before = dweight.copy()
    y = cpu.linear_forward(x[:0], weight, bias, "relu")
    dx = cpu.linear_backward(dy[:0], x[:0], y, weight, "relu", dweight, dbias)
    assert y.shape == (0, 5) and dx.shape == (0, 4)
    np.testing.assert_array_equal(dweight, before)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs")
@pytest.mark.parametrize(
    ("cpu_name", "features"),
    [("haswell", "+64bit,+avx,+avx2,+fma,+sse4.2"), ("nehalem", "+64bit,+sse2,+sse4.2")],
)
def test_shorter_vectors(cpu_name, features, tmp_path):
    """The tiles of CPUs without AVX-512, and without fused multiply-add."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": cpu_name,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    folder = Path(__file__).parent
    files = [folder / f"test_{name}_kernels.py" for name in ("linear", "autoregressive")]
    files.append(folder / "test_masked_linear.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
