"""Whole flows: density, sampling, reverse KL, files, and what they say when they break."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from npflow import datasets, testing
from npflow.backend import get_backend
from npflow.bijections import BatchNorm, Bijection, Chain, Diagonal, Memory, Scale, shuffle
from npflow.distributions import DiagonalNormal, Logistic, StandardNormal
from npflow.errors import (
    ConfigurationError,
    InversionDriftError,
    NonFiniteError,
    ShapeError,
)
from npflow.flow import Flow
from npflow.models import (
    NICE_CONFIGURATIONS,
    REALNVP_CONFIGURATIONS,
    dequantizer,
    glow,
    nice,
    realnvp,
    realnvp_multiscale,
)
from npflow.optim import Adam
from npflow.params import Parameter, constant
from npflow.random import Stream
from npflow.training import TrainingOptions, evaluate, fit

BACKENDS = ["reference", "numpy"]
RNG = np.random.default_rng(11)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def stirred(flow, scale=0.2):
    """flow with random numbers added to its parameters: a new flow is the identity."""
    noise = np.random.default_rng(3).normal(size=flow.params.values.shape) * scale
    flow.params.values += flow.backend.array(noise)
    return flow


def build(backend="numpy", dtype="float64", **changes):
    configuration = {"features": 5, "couplings": 4, "hidden": (12,), "activation": "tanh"}
    return stirred(realnvp(**configuration | changes, backend=backend, dtype=dtype))


# Density and sampling


def test_log_prob_is_base_density_and_jacobian(backend):
    """Change of variables, the Jacobian by finite differences."""
    flow = build(backend, batch_norm=True)
    x = RNG.normal(size=(4, 5))
    flow.update_statistics(RNG.normal(1.0, 2.0, size=(50, 5)))
    jacobian = testing.jacobian(flow.to_latent, x)
    z = flow.to_latent(x)
    expected = -0.5 * (z**2).sum(1) - 2.5 * math.log(2 * math.pi) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(flow.log_prob(x), expected, rtol=0, atol=1e-10)


def test_latents_and_data_are_inverse(backend):
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        flow = build(backend, dtype)
        x = RNG.normal(size=(7, 5))
        z = flow.to_latent(x)
        assert z.dtype == np.dtype(dtype)
        np.testing.assert_allclose(flow.from_latent(z), x, rtol=0, atol=tolerance)
        assert np.abs(z - x).max() > 0.1


def test_log_prob_of_a_sample_is_the_samples_log_prob(backend):
    flow = build(backend)
    x, log_prob = flow.sample_and_log_prob(9, seed=4)
    np.testing.assert_allclose(flow.log_prob(x), log_prob, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(flow.sample(9, seed=4), x)
    assert not np.array_equal(flow.sample(9, seed=5), x)


def test_rows_do_not_depend_on_each_other(backend):
    flow = build(backend, batch_norm=True)
    flow.update_statistics(RNG.normal(size=(50, 5)))
    x = RNG.normal(size=(6, 5))
    one_by_one = np.concatenate([flow.log_prob(row[None]) for row in x])
    np.testing.assert_allclose(flow.log_prob(x), one_by_one, rtol=0, atol=1e-12)


def test_input_is_not_changed_and_may_be_strided_or_of_the_other_dtype(backend):
    flow = build(backend, "float32")
    wide = RNG.normal(size=(6, 10)).astype(np.float32)
    before = wide.copy()
    strided = wide[:, ::2]
    expected = flow.log_prob(np.ascontiguousarray(strided))
    np.testing.assert_array_equal(flow.log_prob(strided), expected)
    np.testing.assert_array_equal(flow.log_prob(strided.astype(np.float64)), expected)
    np.testing.assert_array_equal(flow.log_prob(strided.tolist()), expected)
    for memory in ("store", "recompute", "invert"):
        flow.nll_and_grad(strided, memory=memory)
    flow.to_latent(strided), flow.from_latent(strided)
    np.testing.assert_array_equal(wide, before)


@pytest.mark.parametrize(
    ("base", "deviation"),
    [
        (StandardNormal(2), 1.0),
        (Logistic(2), math.pi / math.sqrt(3)),
        (DiagonalNormal(2, (1.0, -2.0), 0.5), 0.5),
    ],
)
def test_temperature_scales_the_deviations_of_latents(base, deviation, backend):
    flow = Flow(base, Scale(1.0), backend=backend, dtype="float64")
    mean = np.array(getattr(base, "mean", (0.0, 0.0)))
    whole = flow.sample(20_000, seed=1)
    # Five standard errors of the mean and of the deviation.
    np.testing.assert_allclose(whole.mean(0), mean, rtol=0, atol=5 * deviation / 141)
    np.testing.assert_allclose(whole.std(0), deviation, rtol=5 * 1.1 / 141)
    for temperature in (0.0, 0.7):
        cooled = flow.sample(20_000, seed=1, temperature=temperature)
        np.testing.assert_allclose(cooled - mean, temperature * (whole - mean), rtol=0, atol=1e-14)


def test_samples_follow_the_density():
    """E[f(x)] by sampling and by quadrature of the density, for an f of both features."""
    flow = build(features=2, couplings=4)
    grid = np.linspace(-15, 15, 601)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = np.exp(flow.log_prob(points)) * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=0, atol=1e-6)
    x = flow.sample(40_000, seed=0)
    for f in (lambda p: p[:, 0], lambda p: p[:, 0] * p[:, 1], lambda p: np.abs(p[:, 1])):
        error = f(x).std() / math.sqrt(len(x))
        assert abs(f(x).mean() - weights @ f(points)) < 4 * error


def test_a_trained_density_integrates_to_one():
    flow = realnvp(2, couplings=6, hidden=(32, 32), backend="numpy")
    rows = datasets.toy("two_moons", 2000, 0)
    options = TrainingOptions(epochs=8, batch_size=50, learning_rate=3e-3)
    history = fit(flow, rows, options=options, progress_bar=False)
    assert history[-1]["train_nll"] < 1.6
    x, y = np.linspace(-4, 5, 601), np.linspace(-4, 4.5, 601)
    points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(-evaluate(flow, points, batch_size=10_000))
    assert abs(density.sum() * (x[1] - x[0]) * (y[1] - y[0]) - 1) < 1e-3


# Gradients


@pytest.mark.parametrize("memory", ["store", "recompute", "invert", Memory("invert", 2)])
def test_gradient_of_the_loss(memory, backend):
    flow, x = build(backend), RNG.normal(size=(6, 5))
    testing.check_flow_gradients(flow, x, memory=memory)


def test_gradient_of_the_loss_with_every_kind_of_layer(backend):
    layers = build(batch_norm=True).bijection.layers
    chain = Chain((Scale(0.5), shuffle(5, 1), *layers, Diagonal(5)))
    flow = stirred(Flow(Logistic(5), chain, backend=backend, dtype="float64"))
    testing.check_flow_gradients(flow, RNG.normal(size=(6, 5)), memory="recompute")


def test_loss_is_the_mean_of_minus_log_prob(backend):
    flow, x = build(backend), RNG.normal(size=(6, 5))
    loss = flow.nll_and_grad(x)
    assert loss == pytest.approx(-flow.log_prob(x).mean(), abs=1e-13)
    once = flow.params.grads.copy()
    flow.nll_and_grad(x)  # gradients start from zero each time
    np.testing.assert_array_equal(flow.params.grads, once)


def test_drift_past_the_bound_is_refused(backend):
    flow, x = build(backend), RNG.normal(size=(6, 5))
    flow.nll_and_grad(x, memory="invert")
    assert 0 < flow.drift < 1e-12
    with pytest.raises(InversionDriftError, match=r"inverting layer \d \(Coupling\) .*anchor"):
        flow.nll_and_grad(x, memory=Memory("invert", drift_bound=1e-30))
    flow.nll_and_grad(x)
    assert flow.drift == 0


# Context


def test_context_in_every_call(backend):
    flow = build(backend, context_features=3)
    x, context = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 3))
    other = context + 1
    log_prob = flow.log_prob(x, context)
    z = flow.to_latent(x, context)
    np.testing.assert_allclose(flow.from_latent(z, context), x, rtol=0, atol=1e-12)
    samples, samples_log_prob = flow.sample_and_log_prob(6, 2, context)
    np.testing.assert_array_equal(flow.sample(6, 2, context=context), samples)
    np.testing.assert_allclose(flow.log_prob(samples, context), samples_log_prob, atol=1e-11)
    assert np.abs(flow.log_prob(x, other) - log_prob).min() > 1e-3
    assert np.abs(flow.sample(6, 2, context=other) - samples).max() > 1e-2
    for memory in ("store", "recompute", "invert"):
        testing.check_flow_gradients(flow, x, context, memory=memory)


def test_gradient_of_the_context(backend):
    """What a network that computes the context is trained with."""
    flow = build(backend, context_features=3)
    x, context = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 3))
    for memory in ("store", "recompute", "invert"):
        _, _, cache = flow.bijection.forward(x, context, Memory(memory))
        z = flow.to_latent(x, context)
        _, dcontext = flow.bijection.backward(cache, -z, np.ones(4))
        by_differences = np.zeros_like(context)
        for index in np.ndindex(context.shape):
            slopes = []
            for h in (1e-3, 2e-3):
                step = np.zeros_like(context)
                step[index] = h
                change = flow.log_prob(x, context + step) - flow.log_prob(x, context - step)
                slopes.append(change.sum() / (2 * h))
            by_differences[index] = (4 * slopes[0] - slopes[1]) / 3
        np.testing.assert_allclose(dcontext, by_differences, rtol=0, atol=1e-8)
        assert np.abs(by_differences).max() > 0.1


def test_a_conditional_flow_learns_its_context(backend):
    """x = 3 c + noise: the conditional density is N(3 c, 1/4), its entropy 0.726 a feature."""
    rng = np.random.default_rng(0)
    context = rng.normal(size=(1000, 1))
    x = 3 * context + 0.5 * rng.normal(size=(1000, 2))
    flow = realnvp(2, couplings=2, hidden=(16,), context_features=1, backend=backend)
    options = TrainingOptions(epochs=12, batch_size=50, learning_rate=2e-2)
    history = fit(flow, x, options=options, context=context, progress_bar=False)
    entropy = math.log(2 * math.pi * math.e * 0.25)
    assert history[0]["train_nll"] > entropy + 0.5
    assert history[-1]["train_nll"] < entropy + 0.15
    samples = flow.sample(500, context=np.full((500, 1), 1.5))
    np.testing.assert_allclose(samples.mean(0), 4.5, rtol=0, atol=0.3)


# The gradient with respect to data


def gradient_error(flow, x, context=None):
    """Of log_prob_and_grad in x, relative to the largest slope by differences."""
    expected, h = np.empty_like(x), testing.STEP
    for i in np.ndindex(x.shape[1:]):
        values = []
        for step in (h, -h, 2 * h, -2 * h):
            moved = x.copy()
            moved[:, *i] += step
            values.append(flow.log_prob(moved, context))
        expected[:, *i] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    log_prob, found = flow.log_prob_and_grad(x, context)
    np.testing.assert_allclose(log_prob, flow.log_prob(x, context), rtol=1e-13)
    assert found.shape == x.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("context_features", [0, 2])
def test_gradient_of_log_prob_in_x(context_features, backend):
    flow = build(backend, context_features=context_features)
    context = RNG.normal(size=(7, 2)) if context_features else None
    flow.params.grads[...] = 7.0  # what was there before does not count
    assert gradient_error(flow, RNG.normal(size=(7, 5)), context) < 1e-9
    assert not flow.params.grads.any()


def test_gradient_of_log_prob_is_that_of_stored_statistics(backend):
    """Those of log_prob, not the batch's own: then a row's gradient is its own, too."""
    flow = build(backend, batch_norm=True)
    flow.update_statistics(RNG.normal(1.0, 2.0, size=(50, 5)))
    x = RNG.normal(size=(3, 5))
    assert gradient_error(flow, x) < 1e-9
    one = flow.log_prob_and_grad(x[:1])[1]
    np.testing.assert_allclose(one, flow.log_prob_and_grad(x)[1][:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("build_images", [glow, realnvp_multiscale])
def test_gradient_of_log_prob_in_an_image(build_images, backend):
    small = {
        glow: {"levels": 2, "steps": 1},
        realnvp_multiscale: {"checkerboards": (1, 1), "channels": (1, 0), "network": "gated"},
    }[build_images]
    flow = build_images(
        (4, 4, 1), **small, width=3, map="spline", bound=4.0, backend=backend, dtype="float64"
    )
    stirred(flow)
    assert gradient_error(flow, RNG.uniform(20, 230, size=(2, 4, 4, 1))) < 1e-6


def test_gradient_of_log_prob_refuses_what_log_prob_does():
    flow = build()
    for bad, error in ((np.zeros((2, 4)), ShapeError), (np.full((2, 5), np.nan), NonFiniteError)):
        with pytest.raises(error):
            flow.log_prob_and_grad(bad)
    with pytest.raises(NonFiniteError, match="not finite"):
        flow.params.values[...] = np.nan
        flow.log_prob_and_grad(np.zeros((2, 5)))


# Reverse KL


def bent_gaussian(x):
    """log p up to a constant of x2 ~ N(0, 1), x1 ~ N(x2^2 / 2, 1/2^2), and its gradient."""
    residual = (x[:, 0] - x[:, 1] ** 2 / 2) / 0.25
    log_p = -0.5 * residual * (x[:, 0] - x[:, 1] ** 2 / 2) - 0.5 * x[:, 1] ** 2
    return log_p, np.stack([-residual, residual * x[:, 1] - x[:, 1]], axis=1)


@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
@pytest.mark.parametrize("context_features", [0, 2])
def test_gradient_of_the_reverse_kl(memory, context_features, backend):
    flow = build(backend, features=2, context_features=context_features)
    context = RNG.normal(size=(20, 2)) if context_features else None

    def loss():
        x, log_q = flow.sample_and_log_prob(20, 7, context)
        return float((log_q - bent_gaussian(x)[0]).mean())

    found = flow.reverse_kl_and_grad(bent_gaussian, 20, 7, context=context, memory=memory)
    assert found == pytest.approx(loss(), abs=1e-12)
    gradient, values = flow.params.grads.copy(), flow.params.values
    for seed in range(3):
        v = np.random.default_rng(seed).normal(size=values.size)
        slopes = []
        for h in (1e-4, 2e-4):
            values += h * v
            up = loss()
            values -= 2 * h * v
            slopes.append((up - loss()) / (2 * h))
            values += h * v
        by_differences = (4 * slopes[0] - slopes[1]) / 3
        assert gradient @ v == pytest.approx(by_differences, rel=1e-8)


def test_reverse_kl_fits_a_target(backend):
    """KL(q || p) falls near 0: log p is normalised here, so the loss itself is the divergence."""
    flow = realnvp(2, couplings=4, hidden=(16,), backend=backend, dtype="float64")
    adam = Adam(flow.params, 1e-2)
    constant = -math.log(2 * math.pi) - math.log(0.5)

    def target(x):
        log_p, dlog_p = bent_gaussian(x)
        return log_p + constant, dlog_p

    def divergence():
        x, log_q = flow.sample_and_log_prob(4000, seed=99)
        return float((log_q - target(x)[0]).mean())

    assert divergence() > 1
    for step in range(250):
        flow.reverse_kl_and_grad(target, 100, seed=0, step=step)
        adam.step(0.99**step)
    assert -1e-3 < divergence() < 0.05


def test_reverse_kl_takes_other_samples_at_each_step():
    flow = build(features=2)
    losses = {flow.reverse_kl_and_grad(bent_gaussian, 5, 0, step) for step in range(4)}
    assert len(losses) == 4


# Statistics


def test_initialize_and_update_statistics_take_the_moments_of_the_data(backend):
    x = RNG.normal(3.0, 2.0, size=(400, 5))
    for call in ("initialize", "update_statistics"):
        flow = build(backend, batch_norm=True)
        getattr(flow, call)(x)
        np.testing.assert_allclose(flow.bijection.layers[0].mean.value, x.mean(0), atol=1e-12)
        np.testing.assert_allclose(flow.bijection.layers[0].var.value, x.var(0), atol=1e-12)
        # Every later layer takes the moments of what reaches it.
        h = x
        for layer in flow.bijection.layers:
            if isinstance(layer, BatchNorm):
                np.testing.assert_allclose(layer.mean.value, h.mean(0), rtol=0, atol=1e-11)
                np.testing.assert_allclose(layer.var.value, h.var(0), rtol=0, atol=1e-11)
            h = layer.forward(h)[0]
        # So at x itself the density is what training saw.
        assert -flow.log_prob(x).mean() == pytest.approx(flow.nll_and_grad(x), abs=1e-10)


# Dequantizers of image models


def variational(build_images, backend="reference"):
    small = {
        glow: {"levels": 1, "steps": 1},
        realnvp_multiscale: {"checkerboards": (1,), "channels": (1,), "network": "convnet"},
    }[build_images]
    flow = build_images(
        (4, 4, 2), **small, width=3, dequantization="variational", backend=backend, dtype="float64"
    )
    return stirred(flow, 0.05)


@pytest.mark.parametrize("build_images", [glow, realnvp_multiscale])
def test_gradient_of_the_bound_of_image_models(build_images, backend):
    flow = variational(build_images, backend)
    # With these numbers no ReLU is within a step of its kink; with others some are.
    values = np.random.default_rng(0).integers(0, 256, size=(6, 4, 4, 2))
    noise = 3, 1, Stream.DEQUANTIZE
    flow.bound_and_grad(values, None, *noise)
    gradient, parameters = flow.params.grads.copy(), flow.params.values
    of_noise = [name for name in flow.params.table if name.startswith("dequantizer.")]
    assert len(of_noise) > 20
    assert all(np.abs(flow.params.grad(name)).max() > 1e-6 for name in of_noise)
    h, v = 1e-5, np.random.default_rng(0).normal(size=parameters.size)
    losses = []
    for step in (h, -2 * h, h):
        parameters += step * v
        losses.append(-flow.bound(values, None, *noise).mean())
    assert gradient @ v == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-7)


def test_noise_of_image_models_is_given_the_image(tmp_path):
    flow = variational(glow)
    values = RNG.integers(0, 256, size=(2, 4, 4, 2))
    draw = flow.dequantizer.sample(values, 0, 0)
    noise = draw.x - values
    assert 0 <= noise.min() < noise.max() <= 1
    other = values.copy()
    other[0, 0, 0, 0] ^= 128
    changed = flow.dequantizer.sample(other, 0, 0).x - other != noise
    assert changed[0].sum() > 5
    assert not changed[1].any()
    flow.save(tmp_path / "flow")
    loaded = Flow.load(tmp_path / "flow", "reference")
    np.testing.assert_array_equal(loaded.bound(values), flow.bound(values))


def test_unknown_dequantizations_are_refused():
    with pytest.raises(ConfigurationError, match="uniform or variational"):
        glow((4, 4, 1), dequantization="gaussian")
    with pytest.raises(ConfigurationError, match="couplings is 0"):
        dequantizer((4, 4, 1), couplings=0)


# Files


@pytest.mark.parametrize("target_dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_between_backends_and_dtypes(backend, dtype, target, target_dtype, tmp_path):
    flow = build(backend, dtype, batch_norm=True, context_features=2)
    x, context = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 2))
    flow.update_statistics(RNG.normal(size=(50, 5)), RNG.normal(size=(50, 2)))
    flow.save(tmp_path / "flow.safetensors")
    loaded = Flow.load(tmp_path / "flow.safetensors", target, target_dtype)
    assert (loaded.backend.name, loaded.backend.dtype) == (target, np.dtype(target_dtype))
    narrowed = flow.params.values.astype(target_dtype)
    np.testing.assert_array_equal(loaded.params.values, narrowed)
    np.testing.assert_array_equal(loaded.params.state, flow.params.state.astype(target_dtype))
    tolerance = 1e-12 if dtype == target_dtype == "float64" else 1e-4
    found, expected = loaded.log_prob(x, context), flow.log_prob(x, context)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_a_loaded_flow_is_the_same_to_the_bit(backend, tmp_path):
    for dtype in ("float32", "float64"):
        flow = build(backend, dtype)
        flow.save(tmp_path / "flow")
        loaded = Flow.load(tmp_path / "flow", backend)
        assert loaded.backend == flow.backend  # the file's dtype, unless another is asked for
        x = RNG.normal(size=(6, 5))
        np.testing.assert_array_equal(loaded.log_prob(x), flow.log_prob(x))
        assert loaded.nll_and_grad(x) == flow.nll_and_grad(x)
        np.testing.assert_array_equal(loaded.params.grads, flow.params.grads)


def test_views_share_the_buffers_after_init_load_and_training(backend, tmp_path):
    flow = build(backend, batch_norm=True)
    flow.save(tmp_path / "flow")
    loaded = Flow.load(tmp_path / "flow", backend)
    trained = build(backend, batch_norm=True)
    options = TrainingOptions(epochs=2, batch_size=10, average=0.9)
    rows = RNG.normal(size=(40, 5))
    fit(trained, rows, rows, options=options, progress_bar=False)
    for each in (flow, loaded, trained):
        weight = each.bijection.layers[1].conditioner.weights[0]
        assert np.shares_memory(weight.value, each.params.values)
        assert np.shares_memory(weight.grad, each.params.grads)
        assert np.shares_memory(each.bijection.layers[0].mean.value, each.params.state)
        x = RNG.normal(size=(3, 5))
        before = each.log_prob(x)
        each.params.values[...] = 0
        assert not weight.value.any()
        assert np.abs(each.log_prob(x) - before).max() > 1e-3


def test_a_file_is_arrays_and_json(tmp_path):
    """The safetensors layout: a length, a JSON header of plain values, and the numbers."""
    flow = build()
    flow.save(tmp_path / "flow")
    content = (tmp_path / "flow").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["format"] == "npflow.flow"
    config = json.loads(header["__metadata__"]["header"])["flow"]
    assert config == json.loads(json.dumps(flow.config()))
    assert config["bijection"]["layers"][0]["conditioner"]["hidden"] == [12]
    arrays = header.keys() - {"__metadata__"}
    assert arrays == flow.params.table.keys() | flow.params.state_table.keys()
    assert {header[name]["dtype"] for name in arrays} == {"F64"}
    assert len(content) == 8 + length + 8 * (flow.params.count + flow.params.state.size)


@dataclass(eq=False)
class Shift(Bijection):
    """A user's own layer, z = x + b, with options of its own."""

    features: int
    start: float = 0.25

    def __post_init__(self):
        self.b = Parameter((self.features,), constant(self.start))

    def forward(self, x, context=None):
        return x + self.b.value, np.zeros(len(x), x.dtype), ()

    def inverse(self, z, context=None):
        return z - self.b.value, np.zeros(len(z), z.dtype), ()

    def backward(self, cache, dz, dlog_det):
        self.b.grad += dz.sum(0)
        return dz, None


def test_own_components_are_saved_by_name(backend, tmp_path):
    flow = Flow(DiagonalNormal(2, (0.5, 1.0), 2.0), Shift(2, 0.75), backend=backend)
    flow.params.values += np.float32(0.5)
    flow.save(tmp_path / "flow")
    loaded = Flow.load(tmp_path / "flow", backend)
    assert isinstance(loaded.bijection.layers[0], Shift)
    assert (loaded.bijection.layers[0].start, loaded.base.mean) == (0.75, (0.5, 1.0))
    np.testing.assert_array_equal(loaded.log_prob(np.ones((3, 2))), flow.log_prob(np.ones((3, 2))))
    loaded.nll_and_grad(np.ones((3, 2)))
    assert np.abs(loaded.params.grads).min() > 0.1


# Configurations


NAMED = [(realnvp, name, dict(c)) for name, c in REALNVP_CONFIGURATIONS.items()]
NAMED += [(nice, name, dict(c)) for name, c in NICE_CONFIGURATIONS.items()]


@pytest.mark.parametrize(
    ("builder", "name", "configuration"), NAMED, ids=lambda value: getattr(value, "__name__", None)
)
def test_configurations(builder, name, configuration, backend):
    """Each builds, has a finite density and gradient, and gives data back; widths are shrunk."""
    configuration["hidden"] = tuple(min(width, 32) for width in configuration["hidden"])
    flow = stirred(builder(**configuration, backend=backend), scale=0.01)
    high = 256 if name.startswith("mnist") else 1
    x = np.random.default_rng(0).uniform(0, high, (8, flow.features))
    if flow.params.state_table:
        flow.update_statistics(x)
    assert np.isfinite(flow.log_prob(x)).all()
    flow.nll_and_grad(x)
    assert np.isfinite(flow.params.grads).all()
    assert flow.params.grads.any()
    np.testing.assert_allclose(flow.from_latent(flow.to_latent(x)), x, rtol=0, atol=1e-3 * high)


def test_a_new_flow_is_its_base_density(backend):
    """Conditioners end in zeros, so a new RealNVP or NICE is the identity."""
    x = RNG.normal(size=(4, 5))
    for flow in (
        realnvp(5, backend=backend, dtype="float64"),
        nice(5, prior="normal", backend=backend, dtype="float64"),
    ):
        np.testing.assert_array_equal(flow.to_latent(x), x)
        expected = -0.5 * (x**2).sum(1) - 2.5 * math.log(2 * math.pi)
        np.testing.assert_allclose(flow.log_prob(x), expected, rtol=1e-14)


def test_seeds_and_backends_at_initialization():
    """Initial parameters depend on the seed alone, not on the backend."""
    values = {
        (backend, seed): realnvp(5, backend=backend, seed=seed).params.values
        for backend in BACKENDS
        for seed in (0, 1)
    }
    np.testing.assert_array_equal(values["reference", 1], values["numpy", 1])
    assert not np.array_equal(values["numpy", 0], values["numpy", 1])
    wide = realnvp(5, backend=get_backend("numpy", "float64"), seed=1).params.values
    np.testing.assert_array_equal(wide.astype(np.float32), values["numpy", 1])


def test_backends_agree(tmp_path):
    flow = build("reference", batch_norm=True)
    x = RNG.normal(size=(33, 5))
    flow.update_statistics(x)
    flow.save(tmp_path / "flow")
    other = Flow.load(tmp_path / "flow", "numpy")
    assert other.nll_and_grad(x) == pytest.approx(flow.nll_and_grad(x), rel=1e-12)
    scale = np.abs(flow.params.grads).max()
    np.testing.assert_allclose(other.params.grads, flow.params.grads, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(other.sample(20, 3), flow.sample(20, 3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_initialize_gives_the_diagonal_scaling_deviation_one(backend):
    flow = nice(5, 2, (4,), backend=backend, dtype="float64")
    x = np.random.default_rng(0).normal(size=(50, 5)) * [0.01, 0.1, 1, 10, 100]
    flow.initialize(x)
    np.testing.assert_allclose(flow.to_latent(x).std(axis=0), 1, rtol=1e-12)
    with pytest.raises(ShapeError, match="does not vary"):
        flow.initialize(np.ones((3, 5)))
