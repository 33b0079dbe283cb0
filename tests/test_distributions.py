"""Base distributions against their formulas, integrals, differences and sample moments."""

import math

import numpy as np
import pytest
from cases import BACKENDS

from npflow import testing
from npflow.distributions import DiagonalNormal, Logistic, StandardNormal
from npflow.errors import ShapeError
from npflow.params import from_config, to_config

MEAN, SCALE = (0.5, -2.0, 3.0), (0.1, 1.0, 4.0)


def normal_formula(z, mean=0.0, scale=1.0):
    mean, scale = np.asarray(mean), np.asarray(scale)
    density = np.exp(-((z - mean) ** 2) / (2 * scale**2)) / np.sqrt(2 * np.pi * scale**2)
    return np.log(density).sum(axis=1)


def logistic_formula(z):
    return np.log(np.exp(-z) / (1 + np.exp(-z)) ** 2).sum(axis=1)


# name -> constructor, direct formula, mean, standard deviation
DISTRIBUTIONS = {
    "normal": (lambda d: StandardNormal(d), normal_formula, 0.0, 1.0),
    "logistic": (lambda d: Logistic(d), logistic_formula, 0.0, math.pi / math.sqrt(3)),
    "diagonal": (
        lambda d: DiagonalNormal(d, MEAN[:d], SCALE[:d]),
        lambda z: normal_formula(z, MEAN[: z.shape[1]], SCALE[: z.shape[1]]),
        np.array(MEAN),
        np.array(SCALE),
    ),
    "diagonal-scalars": (
        lambda d: DiagonalNormal(d, 1.5, 0.5),
        lambda z: normal_formula(z, 1.5, 0.5),
        1.5,
        0.5,
    ),
}
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each = pytest.mark.parametrize("name", DISTRIBUTIONS)


def prepared(name, features, backend, dtype="float64"):
    base = DISTRIBUTIONS[name][0](features)
    testing.prepare(base, backend, dtype)
    return base


@each
@each_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
def test_log_prob_is_the_formula(name, backend, dtype, tolerance):
    _, formula, mean, deviation = DISTRIBUTIONS[name]
    base = prepared(name, 3, backend, dtype)
    z = (mean + deviation * np.random.default_rng(0).normal(0, 2, size=(50, 3))).astype(dtype)
    log_prob = base.log_prob(base.backend.array(z))
    assert log_prob.dtype == dtype
    expected = formula(z.astype(np.float64))
    np.testing.assert_allclose(base.backend.to_numpy(log_prob), expected, rtol=tolerance)


@each
@each_backend
def test_the_density_integrates_to_one(name, backend):
    base = prepared(name, 1, backend)
    z, dz = np.linspace(-50, 50, 20001, retstep=True)
    density = np.exp(base.backend.to_numpy(base.log_prob(base.backend.array(z[:, None]))))
    assert abs(density.sum() * dz - 1) < 1e-12


@each
@each_backend
def test_gradient(name, backend):
    base = prepared(name, 3, backend)
    rng = np.random.default_rng(0)
    z = base.backend.array(rng.normal(0, 2, size=(4, 3)))
    dlog_prob = rng.normal(size=4)
    dz, _ = base.backward(base.forward(z)[1], base.backend.array(dlog_prob))
    by_hand = base.backend.to_numpy(dz)
    matrix = testing.jacobian(base.log_prob, z)[:, 0]
    np.testing.assert_allclose(by_hand, matrix * dlog_prob[:, None], rtol=1e-8, atol=1e-9)
    assert np.abs(by_hand).min() > 1e-3


@each
@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_tails_stay_finite(name, backend, dtype):
    base = prepared(name, 3, backend, dtype)
    z = base.backend.array([[-1e4, 1e4, 800.0]])
    assert base.backend.xp.isfinite(base.log_prob(z)).all()
    one = base.backend.array([1.0])
    assert base.backend.xp.isfinite(base.backward(base.forward(z)[1], one)[0]).all()
    if name == "logistic":  # log p(z) -> -|z|
        np.testing.assert_allclose(base.backend.to_numpy(base.log_prob(z)), [-20800], rtol=1e-6)


@each
@each_backend
def test_sample_moments(name, backend):
    _, _, mean, deviation = DISTRIBUTIONS[name]
    base = prepared(name, 3, backend)
    n = 100_000
    z = base.backend.to_numpy(base.sample(n, seed=1))
    assert z.shape == (n, 3)
    standard = (z - mean) / deviation
    kurtosis = 4.2 if name == "logistic" else 3.0
    five_sigma = 5 / math.sqrt(n)
    np.testing.assert_array_less(np.abs(standard.mean(axis=0)), five_sigma)
    np.testing.assert_array_less(
        np.abs((standard**2).mean(axis=0) - 1), five_sigma * math.sqrt(kurtosis - 1)
    )
    correlation = (standard.T @ standard / n)[~np.eye(3, dtype=bool)]
    np.testing.assert_array_less(np.abs(correlation), five_sigma)
    fourth = (standard**4).mean(axis=0)
    np.testing.assert_allclose(fourth, kurtosis, rtol=0.1)


@each
@each_backend
def test_streams_and_temperature(name, backend):
    _, _, mean, _ = DISTRIBUTIONS[name]
    base = prepared(name, 3, backend)

    def draw(*args, **options):
        return base.backend.to_numpy(base.sample(*args, **options))

    z = draw(5, 1)
    np.testing.assert_array_equal(z, draw(5, 1))
    assert not (z == draw(5, 2)).any()
    assert not (z == draw(5, 1, 1)).any()
    cool = draw(5, 1, temperature=0.5)
    np.testing.assert_allclose(cool - mean, 0.5 * (z - mean), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(draw(5, 1, temperature=0.0), np.broadcast_to(mean, (5, 3)))


@each_backend
def test_logistic_samples_are_finite_in_float32(backend):
    """Uniform numbers in float32 are 0 once in 2^24 draws; their logit would be -inf."""
    base = prepared("logistic", 4, backend, "float32")
    z = base.sample(250_000, seed=0)
    assert z.dtype == np.float32
    assert base.backend.xp.isfinite(z).all()


def test_a_uniform_number_of_zero_gives_a_finite_logistic(monkeypatch):
    base = prepared("logistic", 2, "reference", "float32")
    monkeypatch.setattr(
        "npflow.random.uniform", lambda backend, shape, *_: np.zeros(shape, backend.dtype)
    )
    z = base.sample(3, seed=0)
    assert np.isfinite(z).all()
    assert (z < -15).all()


@pytest.mark.parametrize(
    ("mean", "scale", "message"),
    [
        ((0.0, 1.0), 1.0, "mean has 2 numbers for 3 features"),
        (0.0, (1.0,) * 4, "scale has 4 numbers for 3 features"),
        (0.0, 0.0, "positive and finite"),
        (0.0, (1.0, -1.0, 1.0), "positive and finite"),
        (0.0, math.inf, "positive and finite"),
        (0.0, math.nan, "positive and finite"),
    ],
)
def test_bad_parameters_are_refused(mean, scale, message):
    with pytest.raises(ShapeError, match=message):
        DiagonalNormal(3, mean, scale)


@each
def test_configuration_round_trip(name):
    base = prepared(name, 3, "reference")
    again = from_config(to_config(base))
    testing.prepare(again)
    z = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(again.log_prob(z), base.log_prob(z))
