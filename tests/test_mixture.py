"""The log-densities of MADE's outputs: mixtures of Gaussians and Bernoulli variables."""

import itertools
import math

import numpy as np
import pytest

from npflow.kernels import cpu, reference
from npflow.kernels.cpu.mixture import sample_column
from npflow.kernels.reference.mixture import mixture_sample

DTYPES = [np.float32, np.float64]
both = pytest.mark.parametrize("dtype", DTYPES)
versions = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
WIDER = {np.float32: np.float64, np.float64: np.longdouble}
SIZES = [(1, 1, 1), (3, 2, 3), (130, 1, 2), (37, 5, 10), (7, 63, 2), (3, 129, 4), (2, 391, 5)]


def _arrays(batch, d, components, dtype, seed=0):
    """x in {0, 1}, x, logits, params and dlog_prob."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (batch, d))
    x, logits = rng.normal(size=(2, batch, d))
    params, dlog_prob = rng.normal(size=(batch, 3 * components * d)), rng.normal(size=batch)
    return [a.astype(dtype) for a in (bits, x, 3 * logits, params, dlog_prob)]


def _calls(batch, d, components, dtype):
    bits, x, logits, params, dlog_prob = _arrays(batch, d, components, dtype)
    return {
        "mixture_log_prob": (x, params),
        "mixture_backward": (x, params, dlog_prob),
        "bernoulli_log_prob": (bits, logits),
        "bernoulli_backward": (bits, logits, dlog_prob),
    }


def _all_strided(arrays):
    result = []
    for a in arrays:
        spaced = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
        view = spaced[tuple(slice(None, None, 2) for _ in a.shape)]
        view[...] = a
        result.append(view)
    return result


@both
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", _calls(1, 1, 1, np.float32))
def test_cpu_is_the_reference(name, size, dtype):
    arguments = _calls(*size, dtype)[name]
    expected = getattr(reference, name)(*(a.astype(WIDER[dtype]) for a in arguments))
    result = getattr(cpu, name)(*arguments)
    strided = getattr(cpu, name)(*_all_strided(arguments))
    if not isinstance(expected, tuple):
        expected, result, strided = (expected,), (result,), (strided,)
    for want, got, other in zip(expected, result, strided, strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, other)
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < 4 * np.finfo(dtype).eps


@both
def test_threads_do_not_change_the_digits(dtype, monkeypatch):
    _, x, _, params, dlog_prob = _arrays(101, 80, 3, dtype)

    def values():
        dx, dparams = cpu.mixture_backward(x, params, dlog_prob)
        return cpu.mixture_log_prob(x, params), dx, dparams

    results = []
    for count in (1, 3):
        monkeypatch.setattr("npflow.kernels.cpu.threads.THREADS", count)
        monkeypatch.setattr("npflow.kernels.cpu.threads._pool", None)
        monkeypatch.setattr("npflow.kernels.cpu.threads.THRESHOLD", 0)
        results.append(values())
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@versions
@pytest.mark.parametrize("size", [(3, 2, 3), (2, 130, 2)], ids=str)
def test_gradients_are_those_of_differences(kernels, size):
    bits, x, logits, params, dlog_prob = _arrays(*size, np.float64)
    dx, dparams = kernels.mixture_backward(x, params, dlog_prob)
    dlogits = kernels.bernoulli_backward(bits, logits, dlog_prob)
    cases = [
        (lambda a: kernels.mixture_log_prob(a, params), x, dx),
        (lambda a: kernels.mixture_log_prob(x, a), params, dparams),
        (lambda a: kernels.bernoulli_log_prob(bits, a), logits, dlogits),
    ]
    for function, at, gradient in cases:
        h = 1e-5
        for j in range(0, at.shape[1], 7 if at.shape[1] > 100 else 1):
            step = np.zeros_like(at)
            step[:, j] = h
            slope = (function(at + step) - function(at - step)) / (2 * h)
            np.testing.assert_allclose(slope * dlog_prob, gradient[:, j], rtol=1e-6, atol=1e-7)


@versions
@both
def test_a_mixture_integrates_to_one(kernels, dtype):
    params = _arrays(1, 1, 3, dtype)[3]
    step = 0.002
    grid = (step * np.arange(-20000, 20001)[:, None]).astype(dtype)
    log_prob = kernels.mixture_log_prob(grid, np.repeat(params, len(grid), axis=0))
    total = step * np.exp(log_prob, dtype=np.float64).sum()
    assert total == pytest.approx(1, abs=20 * float(np.finfo(dtype).eps))


@versions
def test_one_component_is_a_gaussian(kernels):
    x, mean, log_scale = 1.3, 0.4, -0.7
    params = np.array([[5.0, mean, log_scale]])
    u = (x - mean) / math.exp(log_scale)
    expected = -0.5 * u * u - log_scale - 0.5 * math.log(2 * math.pi)
    assert kernels.mixture_log_prob(np.array([[x]]), params)[0] == pytest.approx(expected)


@versions
@both
def test_bernoulli_sums_to_one(kernels, dtype):
    bits = np.array(list(itertools.product((0, 1), repeat=5)), dtype)
    logits = np.repeat(_arrays(1, 5, 1, dtype)[2], len(bits), axis=0)
    total = np.exp(kernels.bernoulli_log_prob(bits, logits), dtype=np.float64).sum()
    assert total == pytest.approx(1, abs=20 * float(np.finfo(dtype).eps))


@versions
@both
def test_bernoulli_far_out(kernels, dtype):
    x = np.array([[1, 0, 1, 0]], dtype).T
    logits = np.array([[30, -30, -1e4, 1e4]], dtype).T
    expected = [-math.log1p(math.exp(-30))] * 2 + [-1e4] * 2
    np.testing.assert_allclose(kernels.bernoulli_log_prob(x, logits), expected, rtol=1e-6)
    gradient = kernels.bernoulli_backward(x, logits, np.ones(4, dtype))
    np.testing.assert_allclose(gradient[2:, 0], [1, -1])
    assert np.abs(gradient[:2]).max() < 1e-6


@versions
@both
@pytest.mark.parametrize("scale", [30, 1000])
def test_a_mixture_far_out_stays_finite(kernels, dtype, scale):
    """Logits 2e4 apart, a component collapsed to a point (at x, and not at x), and a flat one."""
    d = 3
    params = np.zeros((2, 3, 3, d), dtype)
    params[:, 0] = np.array([1e4, -1e4, 0])[:, None]
    params[:, 2, 1], params[:, 2, 2] = -scale, scale
    x = np.array([[0, 0, 0], [1, -50, 1e-3]], dtype)
    params = params.reshape(2, -1)
    # All the weight is on the first component, a standard normal.
    expected = -0.5 * (x.astype(np.float64) ** 2).sum(axis=1) - 0.5 * d * math.log(2 * math.pi)
    np.testing.assert_allclose(kernels.mixture_log_prob(x, params), expected, rtol=1e-6)
    dx, dparams = kernels.mixture_backward(x, params, np.ones(2, dtype))
    np.testing.assert_allclose(dx, -x, rtol=1e-6, atol=0)
    assert np.isfinite(dparams).all()


@versions
@both
@pytest.mark.parametrize("part", ["x", "logits", "means", "log_scales", "dlog_prob"])
def test_a_nan_is_not_lost(kernels, dtype, part):
    _, x, _, params, dlog_prob = _arrays(2, 3, 2, dtype)
    parts = params.reshape(2, 3, 2, 3)
    views = dict(zip(("logits", "means", "log_scales"), np.moveaxis(parts, 1, 0), strict=True))
    {"x": x, "dlog_prob": dlog_prob, **views}[part][1, ...] = np.nan
    if part != "dlog_prob":
        np.testing.assert_array_equal(np.isnan(kernels.mixture_log_prob(x, params)), [False, True])
    dx, dparams = kernels.mixture_backward(x, params, dlog_prob)
    for gradient in (dx, dparams):
        np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), [False, True])


@both
def test_a_column_of_samples_is_the_reference(dtype):
    rng = np.random.default_rng(3)
    n, components = 301, 5
    params = rng.normal(size=(n, 3 * components)).astype(dtype)
    noise = np.stack([rng.normal(size=n), rng.random(n)], axis=1).astype(dtype)
    noise[:4, 1] = 0, 0, *2 * [np.nextafter(dtype(1), dtype(0))]
    x = np.empty(n, dtype)
    sample_column(np.ascontiguousarray(noise.T), np.ascontiguousarray(params.T), x)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(x, mixture_sample(noise, params)[:, 0], rtol=8 * eps, atol=8 * eps)


def test_samples_follow_the_weights():
    """With the uniform on a grid, component k is drawn for its share of the grid."""
    weights, n = np.array([0.1, 0.0, 0.6, 0.3]), 1000
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(weights), -1e4) + 7
    params = np.tile(np.concatenate([logits, np.arange(4.0), np.zeros(4)]), (n, 1))
    noise = np.stack([np.zeros(n), (np.arange(n) + 0.5) / n], axis=1)
    counts = np.bincount(mixture_sample(noise, params)[:, 0].astype(int), minlength=4)
    np.testing.assert_array_equal(counts, [100, 0, 600, 300])
