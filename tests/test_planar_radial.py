"""Planar and radial flows: the paper's formulas, the ends of their ranges, the start."""

import numpy as np
import pytest
from cases import BACKENDS

from npflow import Flow, testing
from npflow.bijections import Chain, Inverse, Planar, Radial
from npflow.bijections.planar import SHIFT, solve
from npflow.distributions import StandardNormal

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_layer = pytest.mark.parametrize("kind", [Planar, Radial])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def softplus(a):
    return np.log1p(np.exp(a))


def prepared(layer, backend="reference", dtype="float64", seed=0):
    store = testing.prepare(layer, backend, dtype, seed)
    x = np.random.default_rng(seed).normal(size=(20, layer.features))
    return store, layer.backend.array(x)


def squeeze(layer: Planar, exponent: float):
    """Set u along w such that w.u_hat + 1 = softplus(exponent)."""
    w = layer.w.value
    layer.u.value[...] = (exponent - SHIFT) / (w * w).sum() * w


@each_backend
def test_planar_is_that_of_the_paper(backend):
    """Eq. 10-12 and A.1 as printed; the softplus of A.1 is shifted, which moves u along w."""
    layer = Planar(4)
    store, x = prepared(layer, backend)
    z, log_det, _ = (layer.backend.to_numpy(a) for a in (*layer.forward(x)[:2], x))
    x = layer.backend.to_numpy(x)
    u, w, b = (store.to_numpy()[name] for name in "uwb")
    u = u + SHIFT * w / (w @ w)  # the paper's u
    u_hat = u + (-1 + softplus(w @ u) - w @ u) * w / (w @ w)
    h = np.tanh(x @ w + b)
    psi = (1 - h**2)[:, None] * w
    np.testing.assert_allclose(z, x + u_hat * h[:, None], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(log_det, np.log(np.abs(1 + psi @ u_hat)), rtol=1e-12, atol=1e-13)
    assert np.abs(log_det).max() > 0.1


@each_backend
def test_radial_is_that_of_the_paper(backend):
    """Eq. 13-14 and A.2 as printed: h = 1 / (alpha + r), h' = -h^2."""
    layer = Radial(4)
    store, x = prepared(layer, backend)
    z, log_det, _ = (layer.backend.to_numpy(a) for a in (*layer.forward(x)[:2], x))
    x = layer.backend.to_numpy(x)
    x0, raw_alpha, beta = (store.to_numpy()[name] for name in ("x0", "raw_alpha", "beta"))
    alpha = softplus(raw_alpha)
    beta_hat = -alpha + softplus(beta)
    r = np.linalg.norm(x - x0, axis=1)
    h = 1 / (alpha + r)
    np.testing.assert_allclose(z, x + (beta_hat * h)[:, None] * (x - x0), rtol=1e-13, atol=1e-13)
    expected = 3 * np.log(1 + beta_hat * h) + np.log(1 + beta_hat * h - beta_hat * h**2 * r)
    np.testing.assert_allclose(log_det, expected, rtol=1e-12, atol=1e-13)
    assert np.abs(log_det).max() > 0.1


@each_backend
@each_layer
def test_a_new_layer_is_the_identity_and_can_learn(kind, backend):
    chain = Chain((kind(3), kind(3)))
    flow = Flow(StandardNormal(3), chain, backend=backend, dtype="float64")
    x = flow.backend.array(np.random.default_rng(0).normal(1, 2, size=(50, 3)))
    z, log_det, _ = chain.forward(x)
    found, _, _ = chain.inverse(x)
    for a, b in ((z, x), (log_det, 0 * log_det), (found, x)):
        np.testing.assert_allclose(
            flow.backend.to_numpy(a), flow.backend.to_numpy(b), rtol=1e-15, atol=1e-15
        )
    flow.nll_and_grad(x)
    name = {Planar: "u", Radial: "beta"}[kind]
    first, second = (flow.backend.to_numpy(getattr(b, name).grad) for b in chain.layers)
    assert np.abs(first).min() > 1e-3
    assert np.abs(first - second).min() > 1e-3, "layers that start alike would stay alike"


@each_backend
@each_layer
@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_gradient_of_a_flow_in_every_memory_schedule(kind, backend, memory):
    chain = Chain((kind(3), Inverse(kind(3)), kind(3), kind(3)))
    flow = Flow(StandardNormal(3), chain, backend=backend, dtype="float64")
    testing.randomize(flow.params, scale=0.3)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(16, 3)))
    testing.check_flow_gradients(flow, x, memory=memory)


# s = 1 + w.u_hat, from a map that is nearly flat at v = 0 to one that is nearly a step there
SLOPES = [1e-30, 1e-16, 1e-12, 1e-8, 1e-4, 0.03, 0.5, 0.999, 1, 1.001, 2, 30, 1e3, 1e5, 1e8, 1e12]


def less_tanh(v):
    """v - tanh v, by its series where the difference cancels."""
    series = v**3 / 3 - 2 * v**5 / 15 + 17 * v**7 / 315 - 62 * v**9 / 2835 + 1382 * v**11 / 155925
    return np.where(abs(v) < 0.03, series, v - np.tanh(v))


def residual(c, s, dtype):
    """The largest error of v + (s - 1) tanh v = c, in roundings of c."""
    c, s = c.astype(dtype), np.array([s], dtype)
    v = solve(np, c, s)
    assert v.dtype == dtype
    v, s = v.astype(np.longdouble), s.astype(np.longdouble)
    exact = less_tanh(v) + s * np.tanh(v)
    return float((np.abs(exact - c) / (np.abs(c) * np.finfo(dtype).eps)).max())


@each_dtype
@pytest.mark.parametrize("s", SLOPES)
def test_planar_equation_is_solved_to_rounding(s, dtype, monkeypatch):
    size = np.concatenate([np.logspace(-25, 6, 3000), s * np.linspace(0.01, 1.2, 400)])
    size = np.concatenate([size, abs(s - s * np.logspace(-13, -1, 1000))])  # where tanh saturates
    size = size[size > 1e-25]
    c = np.concatenate([size, -size])
    assert residual(c, s, dtype) < 16
    if not 0.9 < s < 1.1:
        monkeypatch.setattr("npflow.bijections.planar.ITERATIONS", 1)
        assert residual(c, s, dtype) > 1000, "the bound must reject a root that is nearly right"


@each_backend
@each_dtype
@pytest.mark.parametrize("exponent", [-35, -20, -8, 0, 30])
def test_planar_inverse_at_the_ends_of_its_range(exponent, backend, dtype):
    """w.z = w.x + w.u_hat tanh(w.x + b) holds to rounding, with w.u_hat down to -1 + 6e-16."""
    layer = Planar(5)
    _, x = prepared(layer, backend, dtype)
    squeeze(layer, exponent)
    host = layer.backend.to_numpy
    z = x  # any point is a latent
    found, log_det, _ = layer.inverse(z)
    again, forward_log_det, _ = layer.forward(found)
    eps = np.finfo(dtype).eps
    u_norm = float(abs(host(layer.u.value)).max())
    np.testing.assert_allclose(host(again), host(z), rtol=0, atol=16 * eps * (1 + u_norm))
    assert np.isfinite(host(log_det)).all()
    if exponent > -10:  # below, log_det magnifies the rounding of x
        np.testing.assert_allclose(host(forward_log_det), -host(log_det), rtol=1e4 * eps)


@each_backend
def test_planar_has_no_singularity_at_a_small_w(backend):
    """With the paper's own softplus u_hat would grow as 1 / |w|."""
    layer = Planar(3)
    _, x = prepared(layer, backend)
    layer.w.value *= 1e-12
    z, log_det, cache = layer.forward(x)
    shift = layer.backend.to_numpy(z - x)
    assert np.abs(shift).max() <= 2 * np.abs(layer.backend.to_numpy(layer.u.value)).sum()
    layer.backward(cache, 0 * x + 1, 0 * log_det + 1)
    assert np.isfinite(layer.backend.to_numpy(layer.w.grad)).all()


@each_backend
@each_dtype
def test_radial_at_its_centre_and_far_away(backend, dtype):
    """x0 goes to x0; nothing is divided by r = 0; both forms of the root are exact."""
    layer = Radial(4)
    _, x = prepared(layer, backend, dtype)
    scales = np.concatenate([[0, 1e-7], np.logspace(-4, 6, 18)])
    x = layer.backend.array(scales)[:, None] * x
    layer.x0.value[...] = 0  # with any other centre, x near it is rounded
    host, eps = layer.backend.to_numpy, np.finfo(dtype).eps
    for beta in (-20.0, -3.0, 0.0, 5.0):
        layer.beta.value[...] = beta
        z, log_det, cache = layer.forward(x)
        found, _, inverse_cache = layer.inverse(z)
        np.testing.assert_array_equal(host(z[0]), 0)
        np.testing.assert_allclose(host(found), host(x), rtol=16 * eps)
        np.testing.assert_allclose(host(inverse_cache.r), host(cache.r), rtol=16 * eps)
        dx, _ = layer.backward(cache, 0 * z + 1, 0 * log_det)
        alpha, s = (softplus(host(p.value).astype("f8")) for p in (layer.raw_alpha, layer.beta))
        np.testing.assert_allclose(host(dx[0]), np.repeat(s / alpha, 4), rtol=8 * eps)
        dz, _ = layer.inverse_backward(cache, 0 * z + 1, 0 * log_det + 1)
        assert np.isfinite(host(dz)).all() and np.isfinite(host(log_det)).all()


@each_layer
def test_inverse_is_the_sampling_direction_of_the_paper(kind):
    """Inverse(layer): a sample is layer.forward of a base sample, at log_prob base - log_det."""
    layer = kind(3)
    flow = Flow(StandardNormal(3), Inverse(layer), backend="reference", dtype="float64")
    testing.randomize(flow.params)
    e = np.random.default_rng(0).normal(size=(10, 3))
    x, log_det, _ = layer.forward(e)
    np.testing.assert_allclose(flow.from_latent(e), x, rtol=1e-14)
    np.testing.assert_allclose(flow.log_prob(x), flow.base.log_prob(e) - log_det, rtol=1e-12)
