"""The masked linear layer: reference against the mask written out, Numba against the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads
from npflow.kernels.reference.masked_linear import staircase

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
# batch, n_in, n, parts: one row, one column, panels in one part and across parts, several blocks of
# rows, W packed and W read as it lies, the kernels for few inputs and few outputs.
SHAPES = [
    (1, 1, 1, 1), (1, 70, 60, 5), (8, 16, 48, 1), (9, 17, 49, 2), (33, 64, 2, 1), (257, 1, 32, 2),
    (96, 49, 33, 1), (40, 3, 50, 2), (1000, 5, 7, 1), (130, 300, 125, 2), (97, 1100, 50, 1),
    (60, 40, 300, 5), (60, 150, 130, 2), (300, 150, 130, 2), (20, 200, 9, 5),
]  # fmt: skip
STAIRCASES = ("random", "sequential", "zeros", "repeated", "full", "none")


def steps(kind, n_in, n, rng):
    match kind:
        case "random":
            reach = np.sort(rng.integers(0, n_in + 1, n))
        case "sequential":
            reach = np.arange(n) * n_in // n
        case "zeros":  # half of the columns see nothing
            reach = np.sort(rng.integers(0, n_in + 1, n))
            reach[: n // 2] = 0
        case "repeated":
            reach = np.sort(rng.choice([n_in // 3, n_in // 2, n_in], n))
        case "full":
            reach = np.full(n, n_in)
        case "none":
            reach = np.zeros(n)
    return reach.astype(np.int64)


def layer(batch, n_in, n, parts, kind="random", dtype=np.float64, seed=0, padding=0):
    """x (a view into wider rows), weight, bias, reach, dy and gradients that are not zero."""
    rng = np.random.default_rng(seed)
    reach, n_out = steps(kind, n_in, n, rng), n * parts
    mask = staircase(reach, n_in, n_out)
    x = rng.normal(size=(batch, n_in + padding))
    weight, dweight = rng.normal(size=(2, n_in, n_out)) * mask / np.sqrt(n_in)
    bias, dbias = rng.normal(size=(2, n_out))
    dy = rng.normal(size=(batch, n_out))
    x, weight, bias, dy, dweight, dbias = (
        a.astype(dtype) for a in (x, weight, bias, dy, dweight, dbias)
    )
    return x[:, :n_in], weight, bias, reach, dy, dweight, dbias


def test_the_staircase_is_that_of_the_degrees():
    """Column j of each part sees the inputs before reach[j]."""
    mask = staircase(np.array([0, 1, 1, 3]), 3, 8)
    part = [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask, np.tile(part, (1, 2)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_is_the_linear_layer_of_the_masked_weight(activation):
    x, weight, bias, reach, dy, dweight, dbias = layer(4, 6, 5, 2)
    mask = staircase(reach, *weight.shape)
    dirty = weight + (1 - mask)  # what lies outside the mask has no effect
    y = reference.masked_linear_forward(x, dirty, bias, reach, activation)
    np.testing.assert_array_equal(y, reference.linear_forward(x, weight, bias, activation))
    expected = np.zeros_like(dweight), dbias.copy()
    dx = reference.linear_backward(dy.copy(), x, y, weight, activation, *expected)
    before = dweight.copy()
    given_dx = reference.masked_linear_backward(
        dy, x, y, dirty, reach, activation, dweight, dbias
    )  # fmt: skip
    np.testing.assert_array_equal(given_dx, dx)
    np.testing.assert_array_equal(dweight, before + expected[0] * mask)
    np.testing.assert_array_equal(dbias, expected[1])


def assert_sums_close(given, expected, magnitude):
    """given is a sum computed in its dtype; magnitude is the sum of the terms' absolute values."""
    error = np.abs(given - expected)
    assert np.all(error <= 8 * np.finfo(given.dtype).eps * magnitude), np.max(error)


def check_parity(batch, n_in, n, parts, kind, dtype, activation, padding, seed):
    arrays = layer(batch, n_in, n, parts, kind, dtype, seed, padding)
    x, weight, bias, reach, dy, dweight, dbias = arrays
    x64, weight64, bias64, dy64, dweight64, dbias64 = (
        a.astype(np.float64) for a in (x, weight, bias, dy, dweight, dbias)
    )
    outside = staircase(reach, *weight.shape) == 0

    y = cpu.masked_linear_forward(x, weight, bias, reach, activation)
    assert y.dtype == dtype
    size = np.abs(x64) @ np.abs(weight64) + np.abs(bias64)
    expected = reference.masked_linear_forward(x64, weight64, bias64, reach, activation)
    assert_sums_close(y, expected, size)

    y64 = y.astype(np.float64)
    size_dweight = np.abs(x64.T) @ np.abs(dy64) + np.abs(dweight64)
    size_dbias = np.abs(dy64).sum(axis=0) + np.abs(dbias64)
    size_dx = np.abs(dy64) @ np.abs(weight64.T)
    dx = cpu.masked_linear_backward(dy, x, y, weight, reach, activation, dweight, dbias)
    dx64 = reference.masked_linear_backward(
        dy64, x64, y64, weight64, reach, activation, dweight64, dbias64
    )
    assert dx.dtype == dtype
    assert_sums_close(dx, dx64, size_dx)
    assert_sums_close(dweight, dweight64, size_dweight)
    assert_sums_close(dbias, dbias64, size_dbias)
    assert not np.any(dweight[outside])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_is_reference_at_the_edges(shape, dtype):
    for number, kind in enumerate(STAIRCASES):
        activation = ACTIVATIONS[number % len(ACTIVATIONS)]
        check_parity(*shape, kind, dtype, activation, padding=3 * (number % 2), seed=1)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 150),
    n_in=st.integers(1, 150),
    n=st.integers(1, 100),
    parts=st.sampled_from([1, 2, 5]),
    kind=st.sampled_from(STAIRCASES),
    dtype=st.sampled_from([np.float32, np.float64]),
    activation=st.sampled_from(ACTIVATIONS),
    padding=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 1000),
)
def test_cpu_is_reference(batch, n_in, n, parts, kind, dtype, activation, padding, seed):
    check_parity(batch, n_in, n, parts, kind, dtype, activation, padding, seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tolerance_rejects_a_step_too_many_or_too_few(dtype):
    """The last input that a column sees, forgotten."""
    x, weight, bias, reach, *_ = layer(9, 150, 50, 1, "sequential", dtype)
    y = cpu.masked_linear_forward(x, weight, bias, reach, "identity")
    exact = x.astype(np.float64) @ weight + bias
    size = np.abs(x) @ np.abs(weight) + np.abs(bias)
    assert_sums_close(y, exact, size)
    lost = exact.copy()
    lost[:, -1] -= x[:, reach[-1] - 1] * weight[reach[-1] - 1, -1]
    with pytest.raises(AssertionError):
        assert_sums_close(y, lost, size)


@pytest.mark.parametrize(
    "shape", [(130, 300, 250, 1), (130, 300, 125, 2), (700, 33, 8, 5), (9, 200, 350, 2)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(shape, dtype, monkeypatch):
    """Not with a NaN either, which shows how far beyond a column's reach a panel was computed."""
    monkeypatch.setattr(threads, "THRESHOLD", 1)
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(threads, "THREADS", count)
        monkeypatch.setattr(threads, "_pool", None)
        x, weight, bias, reach, dy, dweight, dbias = layer(*shape, "sequential", dtype)
        x[1, x.shape[1] // 2] = dy[2, dy.shape[1] // 3] = np.nan
        y = cpu.masked_linear_forward(x, weight, bias, reach, "tanh")
        dx = cpu.masked_linear_backward(dy, x, y, weight, reach, "tanh", dweight, dbias)
        results.append((y, dx, dweight, dbias))
        if threads._pool is not None:
            threads._pool.shutdown()
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_full_staircase_is_the_linear_layer_to_the_bit():
    x, weight, bias, reach, dy, *gradients = layer(130, 70, 100, 2, "full")
    copies = [a.copy() for a in gradients]
    y = cpu.masked_linear_forward(x, weight, bias, reach, "elu")
    np.testing.assert_array_equal(y, cpu.linear_forward(x, weight, bias, "elu"))
    dx = cpu.masked_linear_backward(dy, x, y, weight, reach, "elu", *gradients)
    np.testing.assert_array_equal(dx, cpu.linear_backward(dy, x, y, weight, "elu", *copies))
    for one, other in zip(gradients, copies, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_input_is_refused():
    x, weight, bias, reach, dy, dweight, dbias = layer(3, 4, 6, 2)
    y = cpu.masked_linear_forward(x, weight, bias, reach, "relu")

    def forward(x=x, weight=weight, bias=bias, reach=reach, activation="relu"):
        cpu.masked_linear_forward(x, weight, bias, reach, activation)

    def backward(dy=dy, x=x, y=y, weight=weight, reach=reach, dweight=dweight, dbias=dbias):
        cpu.masked_linear_backward(dy, x, y, weight, reach, "relu", dweight, dbias)

    bad = {
        "x": [x[:, :3]],
        "weight": [weight[:3], weight[:, :6], np.asfortranarray(weight)],
        "reach": [reach[:5], reach[:0], reach[None], reach + 5, reach - 5],
    }
    for name, values in (bad | {"bias": [bias[:6]], "activation": ["softplus"]}).items():
        for value in values:
            with pytest.raises(ValueError):
                forward(**{name: value})
    rest = {
        "dy": [dy[:2], dy[:, :6]], "y": [y[:2], y[:, :6]],
        "dweight": [dweight[:3], np.asfortranarray(dweight)], "dbias": [dbias[:6]],
    }  # fmt: skip
    for name, values in (bad | rest).items():
        for value in values:
            with pytest.raises(ValueError):
                backward(**{name: value})


def test_an_empty_batch_gives_empty_arrays():
    x, weight, bias, reach, dy, dweight, dbias = layer(3, 4, 5, 2)
    before = dweight.copy()
    y = cpu.masked_linear_forward(x[:0], weight, bias, reach, "relu")
    dx = cpu.masked_linear_backward(dy[:0], x[:0], y, weight, reach, "relu", dweight, dbias)
    assert y.shape == (0, 10) and dx.shape == (0, 4)
    np.testing.assert_array_equal(dweight, before)
