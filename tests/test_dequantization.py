"""Variational dequantization: the bound, its gradient, its density, and training with it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from test_mutations import Edit, mutated
from test_resume import Death, die_at

import npflow
from npflow import random, testing
from npflow.bijections import (
    BatchNorm,
    Chain,
    Coupling,
    Diagonal,
    Logit,
    Reshape,
    Squeeze,
    half,
)
from npflow.dequantization import VariationalDequantization
from npflow.distributions import StandardNormal
from npflow.elementwise import Affine
from npflow.errors import (
    ConfigurationError,
    DtypeError,
    InversionDriftError,
    NonFiniteError,
    ShapeError,
)
from npflow.flow import Flow
from npflow.networks import MLP
from npflow.random import Stream
from npflow.training import Data, TrainingOptions, evaluate, fit

LEVELS = 4
CELLS = np.array(list(itertools.product(range(LEVELS), repeat=2)))
NOISE = 7, 3, Stream.DEQUANTIZE  # seed, step, stream


def coupling(features, flip, context=0, width=8):
    mask = half(features, flip)
    rest = features - len(mask)
    network = MLP(len(mask), (width,), 2 * rest, "tanh", context=context)
    return Coupling(features, mask, Affine(rest), network)


def couplings(features, number, context=0):
    return tuple(coupling(features, k % 2 == 1, context) for k in range(number))


def build(
    features=2, *, noise="variational", backend="reference", dtype="float64", context=0, seed=0,
    scale=0.5,
):  # fmt: skip
    """A flow over {0, ..., LEVELS - 1}^features, its parameters random."""
    dequantizer = None
    if noise == "variational":
        layers = (*couplings(features, 2, features), Diagonal(features))
        dequantizer = VariationalDequantization((features,), Chain(layers), LEVELS)
    layers = (Logit(0.01, LEVELS), *couplings(features, 2, context), Diagonal(features))
    flow = Flow(
        StandardNormal(features), Chain(layers), dequantizer=dequantizer, backend=backend,
        dtype=dtype, context_features=context, seed=seed,
    )  # fmt: skip
    testing.randomize(flow.params, seed=1, scale=scale)
    return flow


def build_images():
    """The same for images of 2 x 2 pixels, as vectors behind a squeeze."""
    shape = (2, 2, 1)
    flatten, unfold = Reshape(shape, (4,)), Reshape((1, 1, 4), (4,))
    dequantizer = VariationalDequantization(
        shape,
        Chain((Squeeze(shape), unfold, *couplings(4, 2, context=4))),
        LEVELS,
        context_layers=(Squeeze(shape), Reshape((1, 1, 4), (4,))),
    )
    bijection = Chain((flatten, Logit(0.01, LEVELS), *couplings(4, 2)))
    flow = Flow(
        StandardNormal(4), bijection, shape=shape, dequantizer=dequantizer, backend="reference",
        dtype="float64",
    )  # fmt: skip
    testing.randomize(flow.params, seed=1)
    return flow


def integers(rows, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, LEVELS, (rows, *shape))


# The gradient


def check_gradient(flow, values, context=None, memory="store"):
    """All parameters against differences: the largest error, relative to the largest gradient."""
    flow.params.grads[...] = 7.0  # what was there before does not count
    loss = flow.bound_and_grad(values, context, *NOISE, memory)
    assert float(loss) == -flow.bound(values, context, *NOISE).mean()
    found, values_of_flow = flow.params.grads.copy(), flow.params.values
    expected = np.empty_like(found)
    h = testing.STEP
    for i, value in enumerate(values_of_flow.copy()):
        losses = []
        for step in (h, -h, 2 * h, -2 * h):
            values_of_flow[i] = value + step
            losses.append(-flow.bound(values, context, *NOISE).mean())
        values_of_flow[i] = value
        expected[i] = (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * h)
    assert np.abs(expected).max() > 0.01
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_gradient_of_the_bound(memory):
    flow = build()
    assert check_gradient(flow, integers(5, 2), memory=memory) < 1e-9
    named = [name for name in flow.params.table if name.startswith("dequantizer.bijection.layers")]
    assert len(named) == 11
    for name in named:
        assert np.abs(flow.params.grad(name)).max() > 1e-4, name
    assert (flow.drift > 0) == (memory == "invert")


def test_gradient_of_the_bound_with_a_context():
    context = np.random.default_rng(2).normal(size=(4, 2))
    assert check_gradient(build(3, context=2), integers(4, 3), context) < 1e-9


@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_gradient_of_the_bound_of_images(memory):
    assert check_gradient(build_images(), integers(3, 2, 2, 1), memory=memory) < 1e-9


def test_recompute_has_the_bits_of_store():
    flow, gradients = build(3, dtype="float32", backend="numpy"), []
    for memory in ("store", "recompute"):
        flow.bound_and_grad(integers(9, 3), None, *NOISE, memory)
        gradients.append(flow.params.grads.tobytes())
    assert gradients[0] == gradients[1]


# The bound and the density of the noise


def exact_log_probability(flow, nodes=60):
    """log P(v) of every cell: the flow's density integrated over it."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    x, weights = (x + 1) / 2, weights / 2
    u = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(flow.log_prob((CELLS[:, None] + u).reshape(-1, 2)))
    return np.log(density.reshape(len(CELLS), -1) @ np.outer(weights, weights).ravel())


def check_mass(flow, monkeypatch, cells=(0, 6, 11, 15)):
    """E_q[p(v + u) / q(u|v)] = P(v), and the mean of the bound is below log P(v).

    Exactly, by the trapezoidal rule over eps: the grid is put in the place of the random numbers.
    """
    axis = np.linspace(-24, 24, 241)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = np.exp(-0.5 * (grid**2).sum(axis=1)) / (2 * math.pi) * (axis[1] - axis[0]) ** 2
    expected = exact_log_probability(flow)
    for cell in cells:
        values = np.tile(CELLS[cell], (len(grid), 1))
        with monkeypatch.context() as patch:
            patch.setattr(random, "normal", lambda *arguments: grid)
            bound = flow.bound(values)
        mass = np.exp(bound + np.log(weights)).sum()
        np.testing.assert_allclose(mass, np.exp(expected[cell]), rtol=1e-10)
        assert bound @ weights < expected[cell] - 0.01


def test_the_exact_probabilities_are_those_of_a_density():
    flow = build()
    exact = exact_log_probability(flow)
    np.testing.assert_allclose(exact, exact_log_probability(flow, nodes=50), rtol=0, atol=1e-9)
    total = np.exp(exact).sum()
    assert 0.9 < total < 1  # the logit's lam leaves a little outside


def test_the_bound_is_below_and_its_exponential_is_the_probability(monkeypatch):
    check_mass(build(scale=0.3), monkeypatch, range(len(CELLS)))


@pytest.mark.parametrize("noise", ["variational", "uniform"])
def test_more_draws_tighten_the_bound_and_never_pass_the_exact_value(noise):
    flow = build(noise=noise)
    rows = np.repeat(CELLS, 500, axis=0)
    exact = -exact_log_probability(flow).mean()
    nll = {n: evaluate(flow, rows, samples=n) for n in (1, 4, 16)}
    for fewer, more in ((1, 4), (4, 16)):
        gain = nll[fewer] - nll[more]
        assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))
    assert exact < nll[16].mean() < exact + 0.35 * (nll[1].mean() - exact)


@pytest.mark.parametrize("noise", ["variational", "uniform"])
def test_draws_are_averaged_before_the_logarithm(noise):
    """Each with the noise of its own step; the first is the one of samples = 1."""
    flow, rows = build(noise=noise, dtype="float32", backend="numpy"), integers(25, 2)
    found = evaluate(flow, rows, batch_size=10, samples=3, seed=5)
    weights = np.empty((3, 25))
    for draw, (batch, start) in itertools.product(range(3), enumerate((0, 10, 20))):
        part = slice(start, start + 10)
        key = 5, 3 * draw + batch, Stream.DEQUANTIZE_EVALUATION
        if noise == "variational":
            weights[draw, part] = flow.bound(rows[part], None, *key)
        else:
            weights[draw, part] = flow.log_prob(npflow.dequantize(flow.backend, rows[part], *key))
    assert len(np.unique(weights)) == weights.size
    np.testing.assert_allclose(found, -np.log(np.exp(weights).mean(axis=0)), rtol=1e-13)
    one = evaluate(flow, rows, batch_size=10, seed=5)
    assert one.tobytes() == (-weights[0]).tobytes()


def log_q_of_normal(u):
    """Of u = sigmoid(eps): the density of the logit-normal distribution."""
    y = np.log(u / (1 - u))
    return (-0.5 * y**2 - 0.5 * math.log(2 * math.pi) - np.log(u * (1 - u))).sum(axis=-1)


def test_an_empty_chain_is_a_logit_normal_density():
    x, weights = np.polynomial.legendre.leggauss(200)
    integral = np.exp(log_q_of_normal((x[:, None] + 1) / 2)) @ weights / 2
    np.testing.assert_allclose(integral, 1, rtol=0, atol=1e-12)  # the formula is right
    dequantizer = VariationalDequantization((3,), Chain(()), LEVELS)
    testing.prepare(dequantizer)
    values = integers(500, 3)
    x, log_q, _ = dequantizer.sample(values, *NOISE)
    u = x - values
    np.testing.assert_allclose(log_q, log_q_of_normal(u), rtol=0, atol=1e-10)
    eps = random.normal(dequantizer.backend, (500, 3), *NOISE[:1], NOISE[2], NOISE[1])
    np.testing.assert_allclose(np.log(u / (1 - u)), eps, rtol=0, atol=1e-12)


def test_log_q_is_a_density_for_every_value():
    """log q found again from u, by the other direction; and its integral over u is one."""
    dequantizer = build().dequantizer
    axis = np.linspace(-20, 20, 201)
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    u = 1 / (1 + np.exp(-y))
    area = (u * (1 - u)).prod(axis=1) * (axis[1] - axis[0]) ** 2

    def log_q(values, u):
        context = 2 * values / (LEVELS - 1) - 1
        eps, log_det, _ = dequantizer.bijection.forward(np.log(u / (1 - u)), context)
        normal = -0.5 * (eps**2).sum(axis=1) - math.log(2 * math.pi)
        return normal + log_det - np.log(u * (1 - u)).sum(axis=1)

    for v in CELLS[[0, 6, 15]]:
        total = np.exp(log_q(np.tile(v, (len(u), 1)), u)) @ area
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-8)
    values = integers(200, 2)
    drawn, found, _ = dequantizer.sample(values, *NOISE)
    np.testing.assert_allclose(found, log_q(values, drawn - values), rtol=0, atol=1e-9)
    same, _, _ = dequantizer.sample(np.zeros_like(values), *NOISE)
    assert np.abs((drawn - values) - same).max() > 0.1  # the noise depends on v


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_stays_in_its_cell(dtype, backend):
    """Even pushed against its ends, where u rounds to 0 or 1."""
    layer = coupling(2, False, context=2)
    flow = Flow(
        StandardNormal(2), Chain((Logit(1e-6, 256),)), dtype=dtype, backend=backend,
        dequantizer=VariationalDequantization((2,), Chain((layer,))),
    )  # fmt: skip
    values = np.random.default_rng(0).choice([0, 1, 254, 255], (1000, 2)).astype(np.uint8)
    for shift in (-60.0, -12.0, 0.0, 12.0, 60.0):
        layer.conditioner.biases[-1].value[0] = shift  # y_b = eps_b - shift
        x, log_q, _ = flow.dequantizer.sample(values, *NOISE)
        assert x.dtype == log_q.dtype == np.dtype(dtype)
        assert ((values <= x) & (x <= values.astype(int) + 1)).all()
        assert np.isfinite(flow.bound(values)).all()
        assert np.isfinite(float(flow.bound_and_grad(values, None, *NOISE)))
        assert np.isfinite(flow.params.grads).all()


@pytest.mark.parametrize("features", [2, 5])
def test_backends_agree(features):
    values = integers(40, features)
    for dtype, tolerance in (("float64", 1e-11), ("float32", 2e-5)):
        results = []
        for backend in ("reference", "numpy"):
            flow = build(features, backend=backend, dtype=dtype)
            loss = flow.bound_and_grad(values, None, *NOISE)
            results.append((flow.bound(values, None, *NOISE), flow.params.grads, loss))
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(one).max())


# Planted errors

DEQUANTIZER = VariationalDequantization


@pytest.mark.parametrize(
    ("check", "edit"),
    [
        ("gradient", Edit(DEQUANTIZER, "backward", "-dlog_q", "0 * dlog_q")),
        ("gradient", Edit(DEQUANTIZER, "backward", "-dlog_q", "dlog_q")),
        ("gradient", Edit(DEQUANTIZER, "backward", "du, dlog_det)", "du, 0 * dlog_det)")),
        ("gradient", Edit(DEQUANTIZER, "backward", "(dx.shape), dlog_det", "(dx.shape), dlog_q")),
        ("gradient", Edit(DEQUANTIZER, "backward", "du = dx", "du = -dx")),
        ("gradient", Edit(DEQUANTIZER, "backward", "du = dx", "du = 0 * dx")),
        ("gradient", Edit(Flow, "bound_and_grad", "-dlog_prob)", "dlog_prob)")),
        ("gradient", Edit(Flow, "bound_and_grad", "log_prob - log_q", "log_prob + log_q")),
        ("gradient", Edit(DEQUANTIZER, "sample", " - log_det_u", "")),
        ("mass", Edit(DEQUANTIZER, "sample", " - log_det_u", "")),
        ("mass", Edit(DEQUANTIZER, "sample", " - log_det_y", "")),
        ("mass", Edit(DEQUANTIZER, "sample", " - log_det_y", " + log_det_y")),
        ("mass", Edit(DEQUANTIZER, "sample", "_add(values, u)", "_add(values, 0.9 * u)")),
        ("mass", Edit(Flow, "bound", " - log_q", "")),
        ("mass", Edit(Flow, "bound", " - log_q", " + log_q")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.function}:{value.new}",
)
def test_planted_errors_are_caught(check, edit, monkeypatch):
    flow = build(scale=0.3)

    def run():
        if check == "mass":
            check_mass(flow, monkeypatch)
        else:
            assert check_gradient(flow, integers(5, 2)) < 1e-9

    run()  # nothing planted: it passes
    monkeypatch.setattr(edit.owner, edit.function, mutated(edit))
    with pytest.raises(AssertionError):
        run()


# Training


def pairs(rows, seed):
    """v_2 follows v_1, both of 4 levels: 8 of 16 cells are as likely, 3 log 2 nats."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, LEVELS, rows)
    return np.stack([first, (first + rng.integers(0, 2, rows)) % LEVELS], axis=1)


def train(flow, rows, validation=None, *, out=None, resume=False, **options):
    options = TrainingOptions(**{"epochs": 2, "batch_size": 32} | options)
    return fit(flow, rows, validation, options=options, out=out, resume=resume, progress_bar=False)


def test_learned_noise_lowers_the_bound():
    rows, test = pairs(4000, 0), pairs(8000, 1)
    nll = {}
    for noise in ("uniform", "variational"):
        flow = build(noise=noise, backend="numpy", dtype="float32", scale=0.0)
        history = train(flow, rows, epochs=12, batch_size=100, learning_rate=1e-2)
        assert history[-1]["train_nll"] < history[0]["train_nll"] - 0.05
        nll[noise] = evaluate(flow, test)
    difference = nll["uniform"] - nll["variational"]
    assert difference.mean() > 6 * difference.std() / math.sqrt(len(difference))
    assert nll["variational"].mean() > 3 * math.log(2)  # the entropy: a bound all the same


@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_a_run_that_dies_and_resumes_has_the_same_bits(memory, monkeypatch, tmp_path):
    rows, validation = pairs(96, 0), pairs(40, 1)

    def run(folder, resume=False):
        flow = build(backend="numpy", dtype="float32")
        options = {"out": tmp_path / folder, "epochs": 4, "memory": memory, "average": 0.9}
        train(flow, rows, validation, resume=resume, **options)
        return flow.params.values.tobytes()

    expected = run("whole")
    for event, resume in ((("train_step", 5), False), (("validate", 2), True)):
        with monkeypatch.context() as patch:
            die_at(patch, *event)
            with pytest.raises(Death):
                run("parts", resume)
    assert run("parts", resume=True) == expected


def test_noise_is_fresh_each_step_and_named_by_the_seed(monkeypatch):
    seen, original = [], VariationalDequantization.sample

    def sample(self, values, *key):
        drawn = original(self, values, *key)
        seen.append((key[:3], drawn.x.copy()))
        return drawn

    monkeypatch.setattr(VariationalDequantization, "sample", sample)
    train(build(), pairs(64, 0), pairs(30, 1), epochs=2, seed=9)
    training = [(key, x) for key, x in seen if key[2] == Stream.DEQUANTIZE]
    assert [key[:2] for key, _ in training] == [(9, 0), (9, 1), (9, 2), (9, 3)]
    assert [key[:2] for key, _ in seen if key[2] == Stream.DEQUANTIZE_EVALUATION] == [(0, 0)] * 2
    for (_, one), (_, other) in itertools.combinations(training, 2):
        assert np.abs((one % 1) - (other % 1)).min() > 0


def test_the_first_batch_sets_flow_and_dequantizer():
    """As if the noise were uniform: then eps and z have deviation 1."""
    flow, values = build(scale=0.2), pairs(3000, 0)
    flow.initialize(values, seed=4)
    u = random.uniform(flow.backend, (3000, 2), 4, Stream.DEQUANTIZE_EVALUATION, 0)
    context = 2 * values / (LEVELS - 1) - 1
    eps = flow.dequantizer.bijection.forward(np.log(u / (1 - u)), context)[0]
    np.testing.assert_allclose(eps.std(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(flow.to_latent(values + u).std(axis=0), 1, rtol=1e-12)


def test_statistics_are_taken_over_the_flows_own_noise():
    norm = BatchNorm(2)
    dequantizer = VariationalDequantization((2,), couplings(2, 1, context=2)[0], LEVELS)
    flow = Flow(StandardNormal(2), norm, dequantizer=dequantizer, dtype="float64", backend="numpy")
    rows = pairs(400, 0)
    train(flow, rows, rows[:100], epochs=1, seed=6)
    x = dequantizer.sample(rows, 6, 2**31, Stream.DEQUANTIZE_EVALUATION).x
    np.testing.assert_allclose(norm.mean.value, x.mean(axis=0), rtol=1e-12)


# Files


def test_save_and_load(tmp_path):
    for k, (flow, shape) in enumerate(((build(), (2,)), (build_images(), (2, 2, 1)))):
        flow.save(tmp_path / f"{k}.safetensors")
        loaded = Flow.load(tmp_path / f"{k}.safetensors", backend="reference")
        values = integers(20, *shape)
        np.testing.assert_array_equal(loaded.bound(values), flow.bound(values))
        assert loaded.config() == flow.config()


def test_flows_without_a_dequantizer_are_what_they_were(tmp_path):
    flow, other = build(noise="uniform"), build()
    assert flow.config().keys() == {"base", "bijection", "shape", "context_features"}
    names = list(flow.params.table)
    assert names == list(other.params.table)[: len(names)]
    fresh = [build(noise=noise, scale=0.0).params for noise in ("uniform", "variational")]
    np.testing.assert_array_equal(fresh[0].values, fresh[1].values[: fresh[0].count])
    flow.save(tmp_path / "flow.safetensors")
    assert Flow.load(tmp_path / "flow.safetensors").dequantizer is None


# Faults


def spoil_parameter(flow):
    flow.params.value("dequantizer.bijection.layers.2.log_scale")[1] = np.nan


def spoil_layer(flow):
    layer = flow.dequantizer.bijection.layers[1]
    layer.map.bounds.value[...] = 2000.0
    layer.conditioner.biases[-1].value[...] = -10.0


def spoil_flow(flow):
    layer = flow.bijection.layers[1]
    layer.map.bounds.value[...] = 2000.0
    layer.conditioner.biases[-1].value[...] = 10.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_parameter, r"parameter dequantizer\.bijection\.layers\.2\.log_scale is not finite"),
        (spoil_layer, r"layer 1 \(Coupling\) of the dequantizer, inverse, gives values"),
        (spoil_flow, r"layer 1 \(Coupling\) forward gives values that are not finite"),
    ],
)
def test_what_is_not_finite_is_named(spoil, message):
    flow = build()
    spoil(flow)
    with np.errstate(all="ignore"):
        with pytest.raises(NonFiniteError, match=rf"^training step 1: {message}"):
            train(flow, pairs(64, 0))
        with pytest.raises(NonFiniteError, match=message):
            evaluate(flow, pairs(64, 0))


def test_a_gradient_that_is_not_finite_is_named_where_it_began():
    flow = build()
    flow.params.grad("dequantizer.bijection.layers.0.map.bounds")[...] = np.inf
    flow.params.grad("dequantizer.bijection.layers.2.log_scale")[...] = np.inf
    error = flow.non_finite_error(pairs(8, 0), None, *NOISE)
    assert "gradient of dequantizer.bijection.layers.0.map.bounds is not finite" in str(error)
    flow.params.grad("bijection.layers.3.log_scale")[...] = np.inf
    error = flow.non_finite_error(pairs(8, 0), None, *NOISE)
    assert "gradient of bijection.layers.3.log_scale is not finite" in str(error)


def test_drift_of_the_dequantizer_is_reported():
    flow = build()
    memory = npflow.Memory("invert", drift_bound=0.0)
    flow.bijection.layers = ()  # nothing to stray there
    with pytest.raises(InversionDriftError, match="inverting layer"):
        flow.bound_and_grad(integers(50, 2), None, *NOISE, memory)


def test_bad_input():
    flow, uniform = build(), build(noise="uniform")
    rows = pairs(10, 0)
    with pytest.raises(ConfigurationError, match=r"no dequantizer.*npflow\.dequantize"):
        uniform.bound(rows)
    with pytest.raises(DtypeError, match="expected integers"):
        flow.bound(rows + 0.5)
    with pytest.raises(ShapeError, match=r"values has shape \(10, 1\)"):
        flow.bound(rows[:, :1])
    with pytest.raises(DtypeError, match="expected floating-point"):
        flow.log_prob(rows)
    with pytest.raises(ConfigurationError, match="binarize"):
        train(flow, rows, integers="binarize")
    with pytest.raises(ConfigurationError, match="binarize"):
        Data.on(flow, rows, integers="binarize")
    with pytest.raises(ConfigurationError, match="samples is 2"):
        evaluate(uniform, rows + 0.5, samples=2)
    with pytest.raises(ConfigurationError, match="samples is 0"):
        evaluate(flow, rows, samples=0)
    with pytest.raises(ConfigurationError, match="levels is 1"):
        VariationalDequantization((2,), Chain(()), 1)
    with pytest.raises(ConfigurationError, match="context layer Diagonal has parameters"):
        VariationalDequantization((2,), Chain(()), context_layers=(Diagonal(2),))
    with pytest.raises(ConfigurationError, match=r"rows of shape \(3,\); the flow's are \(2,\)"):
        Flow(StandardNormal(2), Chain(()), dequantizer=VariationalDequantization((3,), Chain(())))


def test_floats_are_taken_as_they_are():
    """A dequantizer has nothing to do with them."""
    flow, uniform = build(), build(noise="uniform")
    x = pairs(20, 0) + 0.25
    np.testing.assert_array_equal(evaluate(flow, x), evaluate(uniform, x))
    flow.nll_and_grad(x)
    uniform.nll_and_grad(x)
    np.testing.assert_array_equal(flow.params.grads[: uniform.params.count], uniform.params.grads)
    assert not flow.params.grads[uniform.params.count :].any()


def test_invert_refuses_a_layer_of_the_dequantizer_by_name():
    layer = BatchNorm(2)
    flow = Flow(
        StandardNormal(2), Chain(()), dequantizer=VariationalDequantization((2,), Chain((layer,)))
    )
    with pytest.raises(ConfigurationError, match=r"layer 0 \(BatchNorm\) cannot be walked back"):
        train(flow, pairs(10, 0), memory="invert")
