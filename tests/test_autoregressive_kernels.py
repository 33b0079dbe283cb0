"""The one-pass inverse of an autoregressive network: Numba against the reference and itself."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads

MAPS = {  # parameters and numbers of z a feature
    "additive": (1, 1),
    "affine": (2, 1),
    "rational_quadratic": (23, 1),
    "bernoulli": (1, 1),
    "mixture": (9, 2),
}
DIFFERENTIABLE = ("additive", "affine", "rational_quadratic")
# Relative, after up to 100 steps that feed on each other.
TOLERANCE = {np.float64: 1e-12, np.float32: 3e-5}
# Features, context, hidden widths, direct: each crosses an edge of the panels and runs.
SHAPES = [
    (1, 0, (5,), False), (1, 2, (3, 4), True), (2, 0, (60, 70), False), (5, 1, (), True),
    (5, 0, (1, 9, 2), False), (17, 3, (90, 20), True), (100, 0, (130, 61), False),
]  # fmt: skip


@dataclass
class Problem:
    """A random network with zeros outside its masks, and a batch for it."""

    weights: tuple
    biases: tuple
    direct: np.ndarray
    reaches: tuple
    ends: tuple
    activation: str
    map: str
    constants: np.ndarray
    z: np.ndarray
    context: np.ndarray
    dx: np.ndarray
    dlog_det: np.ndarray

    def inverse(self, kernels, z=None, context=None):
        return kernels.autoregressive_inverse(
            self.z if z is None else z, self.context if context is None else context,
            self.weights, self.biases, self.direct, self.reaches, self.ends,
            self.activation, self.map, self.constants,
        )  # fmt: skip

    def inverse_backward(self, kernels, x, activations, params):
        return kernels.autoregressive_inverse_backward(
            self.dx, self.dlog_det, np.concatenate([self.context, x], axis=1), activations, params,
            self.weights, self.direct, self.reaches, self.ends,
            self.activation, self.map, self.constants,
        )  # fmt: skip


def problem(
    shape, map="affine", batch=3, dtype=np.float64, activation="tanh", random=False, seed=0
):
    """Degrees are even over the features, or random."""
    features, context, hidden, has_direct = shape
    rng = np.random.default_rng(seed)
    parts, numbers = MAPS[map]
    highest = features - 2
    lowest = -1 if context else min(0, highest)
    reach, ends, reaches = context + np.arange(features), [], []
    known = context + np.arange(features + 1)  # known[m + 1]: inputs of degree up to m
    for width in hidden:
        count = highest - lowest + 1
        degrees = lowest + np.arange(width) * count // width
        if random:
            degrees = np.sort(rng.integers(lowest, highest + 1, width))
        reaches.append(known[degrees + 1])
        reach = np.searchsorted(degrees, np.arange(features))
        known = np.searchsorted(degrees, np.arange(-1, features), side="right")
        ends.append(reach)
    reaches.append(reach)
    sizes = context + features, *hidden, parts * features
    weights, biases = [], []
    for n_in, n_out, reach in zip(sizes[:-1], sizes[1:], reaches, strict=True):
        mask = np.arange(n_in)[:, None] < np.tile(reach, n_out // len(reach))
        scale = 1 / np.sqrt(n_in)
        weights.append((scale * rng.normal(size=(n_in, n_out)) * mask).astype(dtype))
        biases.append(rng.normal(size=n_out).astype(dtype))
    # Steep maps magnify rounding; exponents that feed on themselves soon overflow.
    weights[-1], biases[-1] = dtype(0.3) * weights[-1], dtype(0.3) * biases[-1]
    mask = np.arange(sizes[0])[:, None] < np.tile(context + np.arange(features), parts)
    direct = 0.3 * rng.normal(size=mask.shape) * mask / np.sqrt(sizes[0])
    z = rng.normal(size=(batch, features))
    if numbers == 2:
        z = np.concatenate([z, rng.uniform(size=(batch, features))], axis=1)
    constants = np.full((int(map in ("affine", "rational_quadratic")), features), 1.5)
    return Problem(
        tuple(weights), tuple(biases), (direct if has_direct else direct[:0]).astype(dtype),
        tuple(reaches), tuple(ends), activation, map, constants.astype(dtype), z.astype(dtype),
        rng.normal(size=(batch, context)).astype(dtype),
        rng.normal(size=(batch, features)).astype(dtype), rng.normal(size=batch).astype(dtype),
    )  # fmt: skip


def assert_close(given, expected, tolerance):
    assert given.shape == expected.shape
    error = np.abs(given - expected)
    assert np.all(error <= tolerance * (1 + np.abs(expected))), np.max(error)


def check_parity(p):
    dtype = p.z.dtype.type
    x, activations, params = p.inverse(cpu)
    expected = p.inverse(reference)
    for one, other in zip((x, *activations, params), (expected[0], *expected[1], expected[2])):  # noqa: B905
        assert one.dtype == dtype
        assert_close(one, other, TOLERANCE[dtype])
    assert len(activations) == len(expected[1])
    if p.map in DIFFERENTIABLE:
        dx = p.inverse_backward(cpu, *expected)
        assert dx.dtype == dtype
        assert_close(dx, p.inverse_backward(reference, *expected), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("map", MAPS)
def test_cpu_is_reference(shape, map):
    for batch in (1, 3, 49, 200):
        check_parity(problem(shape, map, batch, random=batch == 49))


@pytest.mark.parametrize("map", MAPS)
def test_cpu_is_reference_in_float32(map):
    for batch in (1, 49):
        check_parity(problem((17, 3, (90, 20), True), map, batch, np.float32))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "elu"])
def test_activations(activation):
    check_parity(problem((17, 3, (90, 20), True), activation=activation))


@settings(max_examples=150, deadline=None)
@given(
    features=st.integers(1, 30),
    context=st.integers(0, 3),
    hidden=st.lists(st.integers(1, 70), max_size=3).map(tuple),
    direct=st.booleans(),
    map=st.sampled_from(list(MAPS)),
    batch=st.integers(1, 60),
    random=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_cpu_is_reference_at_random(features, context, hidden, direct, map, batch, random, seed):
    shape = features, context, hidden, direct
    check_parity(problem(shape, map, batch, random=random, seed=seed))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tolerance_rejects_one_lost_weight(dtype):
    """Of all weights, the last: the fewest units and features are left to show it."""
    p = problem((100, 0, (130, 110), False), batch=49, dtype=dtype)
    x, activations, params = p.inverse(reference)
    gradient = p.inverse_backward(reference, x, activations, params)
    for weight, layer in zip(p.weights, (1, 2, 3), strict=True):
        index = tuple(np.argwhere(weight)[-1])
        kept, weight[index] = weight[index], 0
        changed = p.inverse(cpu)
        outputs = (None, *changed[1], changed[2])[layer], (None, *activations, params)[layer]
        with pytest.raises(AssertionError):
            assert_close(*outputs, TOLERANCE[dtype])
        with pytest.raises(AssertionError):
            dx = p.inverse_backward(cpu, x, activations, params)
            assert_close(dx, gradient, TOLERANCE[dtype])
        weight[index] = kept


@pytest.mark.parametrize("map", MAPS)
def test_the_network_at_x_gives_the_same_params(map):
    p = problem((100, 3, (130, 61), True), map, batch=50)
    x, activations, params = p.inverse(cpu)
    inputs = h = np.concatenate([p.context, x], axis=1)
    for weight, bias, activation in zip(p.weights, p.biases, activations, strict=False):
        h = np.tanh(h @ weight + bias)
        assert_close(activation, h, 1e-12)
    assert_close(params, h @ p.weights[-1] + p.biases[-1] + inputs @ p.direct, 1e-12)
    if map == "affine":
        shift, raw = np.split(params, 2, axis=1)
        assert_close(x * np.exp(p.constants * np.tanh(raw)) + shift, p.z, 1e-12)
    if map == "rational_quadratic":
        assert_close(cpu.rational_quadratic_forward(x, params, 1.5)[0], p.z, 1e-10)
    if map == "bernoulli":
        np.testing.assert_array_equal(x, p.z < params)


def test_backward_is_the_gradient_of_the_inverse():
    """Against differences of L = sum dx x + dlog_det log_det, with log_det = -sum s."""
    p = problem((17, 3, (90, 20), True), batch=2)

    def loss(z):
        x, _, params = p.inverse(cpu, z)
        log_det = -(p.constants * np.tanh(params[:, 17:])).sum(axis=1)
        return np.sum(p.dx * x) + np.sum(p.dlog_det * log_det)

    x, activations, params = p.inverse(cpu)
    dx = p.inverse_backward(cpu, x, activations, params)
    dz = dx * np.exp(-p.constants * np.tanh(params[:, 17:]))
    for index in np.ndindex(p.z.shape):
        step = np.zeros_like(p.z)
        step[index] = 1e-5
        difference = (loss(p.z + step) - loss(p.z - step)) / 2e-5
        assert dz[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("map", MAPS)
def test_neither_threads_nor_batch_change_a_bit(dtype, map, monkeypatch):
    p = problem((40, 2, (150, 20), True), map, 101, dtype)
    monkeypatch.setattr(threads, "THRESHOLD", 1)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "THREADS", count)
        monkeypatch.setattr(threads, "_pool", None)
        x, activations, params = p.inverse(cpu)
        results.append([x, *activations, params])
        if map in DIFFERENTIABLE:
            results[-1].append(p.inverse_backward(cpu, x, activations, params))
        if threads._pool is not None:
            threads._pool.shutdown()
    monkeypatch.setattr(threads, "_pool", None)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)
    for rows in (slice(7, 8), slice(20, 40)):
        x, activations, params = p.inverse(cpu, p.z[rows], p.context[rows])
        for one, other in zip((x, *activations, params), results[0], strict=False):
            np.testing.assert_array_equal(one, other[rows])


def test_nan_stays_in_its_row_and_after_its_feature():
    p = problem((17, 3, (90, 20), True), batch=20)
    clean = p.inverse(cpu)[0]
    p.z[4, 6] = np.nan
    x = p.inverse(cpu)[0]
    assert np.all(np.isnan(x[4, 6:]))
    x[4, 6:] = clean[4, 6:]
    np.testing.assert_array_equal(x, clean)


def test_any_order_of_memory():
    p = problem((17, 3, (90, 20), True), batch=20)
    x, *_ = p.inverse(cpu)
    turned, *_ = p.inverse(cpu, np.asfortranarray(p.z), np.asfortranarray(p.context))
    np.testing.assert_array_equal(turned, x)


def test_an_empty_batch_gives_empty_arrays():
    p = problem((17, 3, (90, 20), True), batch=0)
    x, activations, params = p.inverse(cpu)
    assert x.shape == (0, 17) and params.shape == (0, 34)
    assert [h.shape for h in activations] == [(0, 90), (0, 20)]
    assert p.inverse_backward(cpu, x, activations, params).shape == (0, 17)


def test_what_does_not_fit_is_refused():
    """Compiled code would read past the ends of arrays."""
    p = problem((17, 3, (90, 20), True))
    with pytest.raises(ValueError, match="fit"):
        p.inverse(cpu, p.z[:, :-1])
    with pytest.raises(ValueError, match="fit"):
        p.inverse(cpu, context=p.context[:, :-1])
    with pytest.raises(ValueError, match="fit"):
        p.inverse(cpu, context=p.context[:-1])
    for name, wrong in (
        ("weights", (p.weights[0], p.weights[1].T, p.weights[2])),
        ("direct", p.direct[1:]),
        ("ends", (p.ends[0], p.ends[1] - 1)),
        ("constants", p.constants[:, 1:]),
        ("constants", p.constants[:0]),
        ("map", "planar"),
        ("activation", "softplus"),
    ):
        q = problem((17, 3, (90, 20), True))
        setattr(q, name, wrong)
        with pytest.raises(ValueError):
            q.inverse(cpu)
