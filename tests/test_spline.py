"""The rational-quadratic spline where splines go wrong: edges, knots, steep bins, large parameters.

tests/cases.py has it in couplings, checked like every other layer.
"""

import numpy as np
import pytest
from cases import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from npflow import get_backend, testing
from npflow.bijections import Coupling
from npflow.elementwise import RationalQuadratic
from npflow.errors import ConfigurationError
from npflow.kernels import cpu, reference
from npflow.kernels.cpu import rational_quadratic as columns
from npflow.networks import MLP

BOUND = 3.0
DTYPES = ["float32", "float64"]
WIDER = {"float32": np.float64, "float64": np.longdouble}
NAMES = ["forward", "inverse", "backward", "inverse_backward"]
both = pytest.mark.parametrize("dtype", DTYPES)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Spline:
    """The four kernels of a backend, on host arrays."""

    def __init__(self, backend, dtype):
        self.backend, self.dtype = get_backend(backend, dtype), np.dtype(dtype)

    def __getattr__(self, name):
        def call(*arrays):
            kernel = getattr(self.backend.kernels, f"rational_quadratic_{name}")
            results = kernel(*map(self.backend.array, arrays), BOUND)
            assert all(result.dtype == self.dtype for result in results)
            return tuple(map(self.backend.to_numpy, results))

        return call

    def gradients(self, x, params):
        """dx, dparams, dz, dparams for cotangents of all ones."""
        ones = np.ones_like(x)
        return self.backward(ones, ones[:, 0], x, params) + self.inverse_backward(
            ones, ones[:, 0], x, params
        )


def knots(params, d, part):
    """Edges of the bins, widths (part 0) or heights (part 1): (B, K + 1, d), in float64."""
    raw = params.astype(np.float64).reshape(len(params), -1, d)
    bins = (raw.shape[1] + 1) // 3
    e = np.exp(raw[:, part * bins : (part + 1) * bins])
    sizes = 1e-3 + (1 - 1e-3 * bins) * e / e.sum(axis=1, keepdims=True)
    edges = np.concatenate([np.zeros_like(e[:, :1]), np.cumsum(sizes, axis=1)], axis=1)
    return BOUND * (2 * edges - 1)


def off_knots(rng, params, d):
    """x (B, d) of which one in seven is outside the box, none next to a knot."""
    edges = knots(params, d, 0)
    x = rng.uniform(-3.5, 3.5, size=(len(params), d))
    for _ in range(100):
        near = (np.abs(x[:, None] - edges) < 1e-3).any(axis=1)
        if not near.any():
            return x.astype(params.dtype)
        x = np.where(near, rng.uniform(-3.5, 3.5, size=x.shape), x)
    raise AssertionError("no such points")


def agree(found, expected, roundings=2000):
    """Up to roundings, of the largest element of the array, or of 1 if that is above it.

    A narrow bin is a difference of edges of the size of the box: that alone loses three digits.
    """
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        largest = np.abs(b).max(initial=1)
        np.testing.assert_allclose(
            a, b.astype(np.float64), rtol=0, atol=roundings * np.finfo(a.dtype).eps * largest
        )


def strided(array):
    wide = np.full([2 * n + 1 for n in array.shape], np.nan, array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.one_of(st.integers(1, 70), st.just(263)),
    d=st.one_of(st.integers(1, 20), st.sampled_from([127, 129, 301])),
    bins=st.sampled_from([1, 2, 5, 8]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(DTYPES),
    is_strided=st.booleans(),
)
def test_the_kernels_for_the_cpu(rows, d, bins, seed, dtype, is_strided):
    rng = np.random.default_rng(seed)
    params = (0.5 * rng.normal(size=(rows, (3 * bins - 1) * d))).astype(dtype)
    x = off_knots(rng, params, d)
    z = reference.rational_quadratic_forward(x, params, BOUND)[0].astype(dtype)
    g, dlog_det = rng.normal(size=(rows, d)).astype(dtype), rng.normal(size=rows).astype(dtype)
    arguments = [(x, params), (z, params), (g, dlog_det, x, params), (g, dlog_det, x, params)]
    for name, arrays in zip(NAMES, arguments, strict=True):
        wide = [array.astype(WIDER[dtype]) for array in arrays]
        expected = getattr(reference, f"rational_quadratic_{name}")(*wide, BOUND)
        if is_strided:
            arrays = [strided(array) for array in arrays]
        found = getattr(cpu, f"rational_quadratic_{name}")(*arrays, BOUND)
        assert all(array.dtype == dtype for array in found)
        agree(found, expected)


@both
def test_the_comparison_rejects_a_small_error(dtype):
    x = np.random.default_rng(0).normal(size=(70, 30)).astype(dtype)
    wrong = x.copy()
    wrong[3, 4] += 5000 * np.finfo(dtype).eps * np.abs(x).max()
    agree([x], [x])
    with pytest.raises(AssertionError):
        agree([wrong], [x])


@both
@pytest.mark.parametrize("n", [1, 48, 300])
def test_columns_are_the_transposed_rows(dtype, n):
    rng = np.random.default_rng(0)
    params, z, dx, dlog_det = (rng.normal(size=s).astype(dtype) for s in ((n, 23), n, n, n))
    x, _ = cpu.rational_quadratic_inverse(z[:, None], params, BOUND)
    _, dparams = cpu.rational_quadratic_inverse_backward(dx[:, None], dlog_det, x, params, BOUND)
    spread = np.zeros((46, n + 5), dtype)  # rows apart from each other, as in a panel
    spread[::2, :n] = params.T
    column, dspread = np.empty(n, dtype), np.full_like(spread, 7)
    params_t, dparams_t = spread[::2, :n], dspread[::2, :n]

    @njit(error_model="numpy")
    def call(z, dx, dlog_det, params_t, column, dparams_t):
        columns.inverse_column(z, params_t, BOUND, column)
        columns.inverse_backward_column(dx, dlog_det, column, params_t, BOUND, dparams_t)

    call(z, dx, dlog_det, params_t, column, dparams_t)
    agree([column, dspread[::2, :n].T], [x[:, 0], dparams], roundings=20)
    assert (dspread[1::2] == 7).all()
    assert (dspread[:, n:] == 7).all()


@both
@each_backend
@pytest.mark.parametrize("bins", [1, 2, 8, 64])
def test_all_zero_params_are_the_identity(backend, dtype, bins):
    spline = Spline(backend, dtype)
    x = np.linspace(-4, 4, 301, dtype=dtype)[:, None]
    params = np.zeros((301, 3 * bins - 1), dtype)
    for direction in (spline.forward, spline.inverse):
        z, log_det = direction(x, params)
        np.testing.assert_allclose(z, x, rtol=0, atol=8 * BOUND * np.finfo(dtype).eps)
        np.testing.assert_allclose(log_det, 0, atol=200 * np.finfo(dtype).eps)


@both
@each_backend
@pytest.mark.parametrize("size", [1, 50, 1e30])
def test_outside_the_box_everything_is_exact(backend, dtype, size):
    """No 0/0 that a mask hides in the value and not in the gradient."""
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    outside = np.array([BOUND, -BOUND, 3.001, -50, 1e30, np.inf, -np.inf])
    x = np.repeat(outside[:, None], 3, axis=1).astype(dtype)
    params = (size * rng.normal(size=(len(x), 23 * 3))).astype(dtype)
    g, dlog_det = rng.normal(size=x.shape).astype(dtype), rng.normal(size=len(x)).astype(dtype)
    for direction in (spline.forward, spline.inverse):
        z, log_det = direction(x, params)
        np.testing.assert_array_equal(z, x)
        np.testing.assert_array_equal(log_det, 0)
    for pull_back in (spline.backward, spline.inverse_backward):
        out, dparams = pull_back(g, dlog_det, x, params)
        np.testing.assert_array_equal(out, g)
        np.testing.assert_array_equal(dparams, 0)


@each_backend
def test_nan_stays_nan(backend):
    spline = Spline(backend, "float64")
    x, params = np.full((1, 1), np.nan), np.ones((1, 23))
    assert np.isnan(spline.forward(x, params)[0]).all()
    assert np.isnan(spline.inverse(x, params)[0]).all()


@both
@each_backend
def test_just_inside_the_edges(backend, dtype):
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    edge = np.nextafter(np.array(BOUND, dtype), np.array(0, dtype))
    x = np.repeat(np.array([[edge], [-edge]]), 100, axis=1)
    params = rng.normal(size=(2, 23 * 100)).astype(dtype)
    eps = np.finfo(dtype).eps
    for direction in (spline.forward, spline.inverse):
        z, log_det = direction(x, params)
        np.testing.assert_allclose(z, x, rtol=8 * eps)
        np.testing.assert_allclose(log_det, 0, atol=1e4 * eps)  # 100 slopes near 1
    assert all(np.isfinite(array).all() for array in spline.gradients(x, params))


@both
@each_backend
def test_points_on_the_knots(backend, dtype):
    """x exactly on the edge of a bin belongs to either bin with the same z, slope and inverse."""
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    params = np.repeat(rng.normal(size=(1, 23)), 27, axis=0).astype(dtype)
    x_knots, z_knots = (knots(params[:1], 1, part)[0, :, 0].astype(dtype) for part in (0, 1))
    below, above = (np.nextafter(x_knots, np.array(to, dtype)) for to in (-9, 9))
    x = np.concatenate([below, x_knots, above])[:, None]
    eps = np.finfo(dtype).eps
    z, log_det = spline.forward(x, params)
    np.testing.assert_allclose(z[:, 0], np.tile(z_knots, 3), rtol=0, atol=100 * eps)
    sides = log_det.reshape(3, 9)
    np.testing.assert_allclose(sides[[0, 2]], sides[[1, 1]], rtol=0, atol=1000 * eps)
    found, inverse_log_det = spline.inverse(z, params)
    np.testing.assert_allclose(found, x, rtol=0, atol=100 * eps)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=0, atol=1000 * eps)
    assert all(np.isfinite(array).all() for array in spline.gradients(x, params))


@both
@each_backend
def test_it_is_monotone(backend, dtype):
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    x = np.linspace(-3.1, 3.1, 4001, dtype=dtype)[:, None]
    for size in (1, 5):
        params = np.repeat(size * rng.normal(size=(1, 23)), len(x), axis=0).astype(dtype)
        for direction in (spline.forward, spline.inverse):
            z, _ = direction(x, params)
            assert (np.diff(z[:, 0]) >= -4 * BOUND * np.finfo(dtype).eps).all()


@both
@each_backend
def test_the_round_trip_of_ordinary_params(backend, dtype):
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    x = rng.normal(scale=2, size=(500, 4)).astype(dtype)
    params = (0.7 * rng.normal(size=(500, 23 * 4))).astype(dtype)
    z, log_det = spline.forward(x, params)
    found, inverse_log_det = spline.inverse(z, params)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(found, x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=10 * tolerance, atol=10 * tolerance)


@both
@each_backend
@pytest.mark.parametrize("size", [3, 10, 50])
def test_the_round_trip_of_steep_bins(backend, dtype, size):
    """The error of x is a few roundings of z over the slope: a flat bin loses digits, no more.

    The textbook root -2c / (b + sqrt(b^2 - 4ac)) cancels for b < 0, and in float32 its discriminant
    comes out below zero.
    """
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=(3000, 1)).astype(dtype)
    params = (size * rng.normal(size=(3000, 23))).astype(dtype)
    z, log_det = spline.forward(x, params)
    found, _ = spline.inverse(z, params)
    slope = np.exp(log_det.astype(np.float64))[:, None]
    # The slope may change a thousandfold within the step: take the flattest end of it.
    _, found_log_det = spline.forward(found, params)
    slope = np.minimum(slope, np.exp(found_log_det.astype(np.float64))[:, None])
    error = np.abs(found.astype(np.float64) - x) / (1 + 1 / slope)
    assert error.max() <= 10 * BOUND * np.finfo(dtype).eps


@both
@each_backend
@pytest.mark.parametrize("size", [50, 1e4, 1e30])
def test_large_params_give_finite_results(backend, dtype, size):
    spline, rng = Spline(backend, dtype), np.random.default_rng(0)
    x = rng.uniform(-3.2, 3.2, size=(200, 3)).astype(dtype)
    params = (size * rng.normal(size=(200, 23 * 3))).astype(dtype)
    for direction in (spline.forward, spline.inverse):
        z, log_det = direction(x, params)
        assert np.isfinite(z).all()
        assert np.isfinite(log_det).all()
        assert (np.abs(z[np.abs(x) < BOUND]) <= BOUND * (1 + 4 * np.finfo(dtype).eps)).all()
    assert all(np.isfinite(array).all() for array in spline.gradients(x, params))


@each_backend
def test_an_empty_batch(backend):
    spline = Spline(backend, "float32")
    x, params = np.zeros((0, 3), np.float32), np.zeros((0, 69), np.float32)
    assert [array.shape for array in spline.forward(x, params)] == [(0, 3), (0,)]
    assert [array.shape for array in spline.gradients(x, params)[:2]] == [(0, 3), (0, 69)]


@pytest.mark.parametrize("bins", [0, -1, 1000])
def test_bins_that_do_not_fit(bins):
    with pytest.raises(ConfigurationError, match=f"bins is {bins}; expected 1 to 999"):
        RationalQuadratic(2, bins=bins)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_bounds_that_do_not_fit(bound):
    with pytest.raises(ConfigurationError, match=f"bound is {bound}; expected a positive"):
        RationalQuadratic(2, bound=bound)


@each_backend
def test_a_new_coupling_is_the_identity_and_has_its_constants(backend):
    map = RationalQuadratic(2, bins=5, bound=2.5)
    assert map.parameters_per_feature == 14
    layer = Coupling(4, (0, 1), map, MLP(2, (8,), 28))
    testing.prepare(layer, backend, scale=0.0)
    x = layer.backend.array(np.random.default_rng(0).normal(size=(6, 4)))
    z, log_det, _ = layer.forward(x)
    host = layer.backend.to_numpy
    np.testing.assert_allclose(host(z), host(x), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(host(log_det), 0, atol=1e-13)
    np.testing.assert_array_equal(host(map.constants()), [[2.5, 2.5]])
