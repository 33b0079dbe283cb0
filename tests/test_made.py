"""MADE: no output sees its own input, one pass inverts, and what the densities are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from test_mutations import Edit, mutated

from npflow import Flow, binarize, get_backend, testing
from npflow.bijections import Chain, Inverse, MaskedAutoregressive
from npflow.distributions import Autoregressive, Bernoulli, GaussianMixture
from npflow.elementwise import Additive, Affine, RationalQuadratic
from npflow.errors import CheckpointError, ConfigurationError, DomainError, ShapeError
from npflow.models import ensemble_log_prob, iaf, made, maf
from npflow.networks import MADE
from npflow.training import TrainingOptions, fit

OPTIONS = [
    {},
    {"context": 2},
    {"direct": True},
    {"random_order": True},
    {"random_degrees": True},
    {"random_order": True, "random_degrees": True, "masks": 3},
    {"random_order": True, "masks": 0, "direct": True, "context": 1},
]
networks = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")


def dependencies(network: MADE, parts: int, seed: int = 0) -> np.ndarray:
    """|d params_p,i / d x_j| summed over rows and parts, both features in their order."""
    features = network.features
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, features))
    context = rng.normal(size=(8, network.context)) if network.context else None
    jacobian = testing.jacobian(lambda x: network.forward(x, context)[0], x)
    found = np.abs(jacobian).reshape(8, parts, features, features).sum(axis=(0, 1))
    order = np.arange(features) if network._masks.order is None else network._masks.order
    return found[order][:, order]


@networks
@pytest.mark.parametrize("hidden", [(), (11,), (9, 12), (10, 8, 9)])
@pytest.mark.parametrize("features", [1, 2, 6])
def test_no_output_sees_its_own_input_or_a_later_one(features, hidden, options):
    network = MADE(features, hidden, 2, "tanh", zero_last=False, **options)
    testing.prepare(network)
    for draw in range(4):
        network.use_masks(draw)
        found = dependencies(network, 2)
        assert not np.triu(found).any()
        if not options.get("random_degrees"):  # evenly spread degrees lose no dependency
            assert (found[np.tril_indices(features, -1)] > 1e-6).all()


def test_the_output_mask_of_the_posts_leaks(monkeypatch):
    """With d >= m in place of d > m each output sees its own input."""
    edit = Edit(MADE, "_reaches", '"left")  # strictly below', '"right")')
    monkeypatch.setattr(edit.owner, edit.function, mutated(edit))
    network = MADE(5, (12,), 2, "tanh", zero_last=False)
    testing.prepare(network)
    assert (np.diag(dependencies(network, 2))[:4] > 1e-6).all()


def test_hidden_degrees_are_not_below_the_smallest_before():
    for draw in range(20):
        network = MADE(9, (4, 5, 6), 1, random_degrees=True, masks=0)
        hidden = network._degrees(draw).hidden
        assert all(b.min() >= a.min() for a, b in itertools.pairwise(hidden))
        assert all(d.min() >= 0 and d.max() <= 7 for d in hidden)
    conditional = MADE(9, (4000,), 1, random_degrees=True, masks=0, context=1)
    assert set(conditional._degrees(0).hidden[0]) == set(range(-1, 8))


def test_draws_differ_and_come_back():
    network = MADE(7, (8,), 1, random_order=True, random_degrees=True, masks=3, zero_last=False)
    testing.prepare(network)
    x = np.random.default_rng(0).normal(size=(2, 7))

    def outputs(draw):
        network.use_masks(draw)
        return network.forward(x)[0]

    first = [outputs(draw) for draw in range(3)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(first, 2))
    for draw in range(3):
        np.testing.assert_array_equal(outputs(draw + 3), first[draw])


def test_values_outside_the_masks_are_zero_and_stay_so():
    flow = maf(6, layers=2, hidden=(9, 8), seed=1, dtype="float64")
    masked = flow.params.masks
    assert len(masked) == 6  # every weight
    x = np.random.default_rng(0).normal(size=(64, 6))
    fit(flow, x, options=TrainingOptions(epochs=3, batch_size=16), progress_bar=False)
    for name, mask in masked.items():
        assert not flow.params.value(name)[~mask].any()
        assert not flow.params.grad(name)[~mask].any()
        assert flow.params.value(name)[mask].any()
    arrays = flow.params.to_numpy()
    name = next(iter(masked))
    arrays[name] = np.ones_like(arrays[name])
    with pytest.raises(CheckpointError, match="where the model has a mask"):
        flow.params.load(arrays)


MAPS = {
    "additive": Additive,
    "affine": Affine,
    "spline": lambda d: RationalQuadratic(d, bins=4, bound=2.5),
}


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    map=st.sampled_from(sorted(MAPS)),
    features=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 20), max_size=3),
    batch=st.integers(1, 70),
    options=st.sampled_from(OPTIONS),
    activation=st.sampled_from(["tanh", "relu", "elu", "leaky_relu"]),
    seed=st.integers(0, 1000),
)
def test_one_pass_inverts_as_many_do(
    backend, map, features, hidden, batch, options, activation, seed
):
    """The one-pass inverse against D passes, to 1e-12 in float64, for any architecture."""
    m = MAPS[map](features)
    network = MADE(
        features, tuple(hidden), m.parameters_per_feature, activation, mask_seed=seed, **options
    )
    layer = MaskedAutoregressive(m, network)
    testing.prepare(layer, backend, seed=seed)
    rng = np.random.default_rng(seed)
    array = layer.backend.array
    z = array(rng.normal(size=(batch, features)))
    context = array(rng.normal(size=(batch, network.context))) if network.context else None
    network.use_masks(seed)
    x, log_det, _ = layer.inverse(z, context)
    by_passes = layer.inverse_by_passes(z, context)
    scale = 1 + layer.backend.xp.abs(by_passes)
    assert float((layer.backend.xp.abs(x - by_passes) / scale).max()) < 1e-12
    again, forward_log_det, _ = layer.forward(x, context)
    assert float(layer.backend.xp.abs(again - z).max()) < 1e-10
    assert float(layer.backend.xp.abs(log_det + forward_log_det).max()) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_iaf_with_the_weights_of_maf_is_its_inverse(backend):
    settings = {"layers": 3, "hidden": (20, 20), "backend": backend, "dtype": "float64"}
    forward, inverse = maf(9, **settings), iaf(9, **settings)
    testing.randomize(forward.params, seed=4)
    inverse.params.values[...] = forward.params.values
    x = forward.backend.array(np.random.default_rng(0).normal(size=(40, 9)))
    # The layers of one in the order of the other: z = f_3 r f_2 r f_1 x.
    layers = inverse.bijection.layers
    for flow_layer, iaf_layer in zip(forward.bijection.layers, layers, strict=True):
        z, log_det, _ = flow_layer.forward(x)
        back, back_log_det, _ = iaf_layer.forward(z)
        if not isinstance(iaf_layer, Inverse):
            continue
        assert float(abs(back - x).max()) < 1e-12
        assert float(abs(log_det + back_log_det).max()) < 1e-12
        x = z


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("map", ["affine", "spline"])
def test_maf_and_iaf_train_by_maximum_likelihood_and_by_reverse_kl(map, backend):
    """IAF's likelihood and MAF's samples are differentiated through the one-pass inverse."""
    for build in (maf, iaf):
        flow = build(
            4, 2, (9, 8), activation="tanh", map=map, backend=backend, dtype="float64", bins=4
        )
        testing.randomize(flow.params, seed=1)
        x = flow.backend.array(np.random.default_rng(0).normal(size=(6, 4)))
        testing.check_flow_gradients(flow, x)
        values = flow.params.values
        flow.reverse_kl_and_grad(standard_normal, 5, seed=0)
        gradient = flow.params.grads.copy()
        v = flow.backend.array(np.random.default_rng(1).normal(size=values.size))
        for name, mask in flow.params.masks.items():
            slot = flow.params.table[name]
            v[slot.start : slot.stop] *= flow.backend.xp.asarray(mask.ravel())
        losses = []
        kept = values.copy()
        for step in (-2e-5, -1e-5, 1e-5, 2e-5):
            values[...] = kept + step * v
            losses.append(flow.reverse_kl_and_grad(standard_normal, 5, seed=0))
        a, b, c, d = losses
        slope = (8 * (c - b) - (d - a)) / 12e-5
        assert float(gradient @ v) == pytest.approx(slope, rel=1e-7)


def standard_normal(x):
    return -0.5 * (x**2).sum(axis=1), -x


@pytest.mark.parametrize("build", [maf, iaf])
def test_memory_schedules(build):
    """recompute gives the bits of store; invert is close, though the inverse is a recursion."""
    flow = build(6, 4, (12, 12), dtype="float64")
    testing.randomize(flow.params, seed=1)
    x = np.random.default_rng(0).normal(size=(20, 6))
    gradients = {}
    for memory in ("store", "recompute", "invert"):
        flow.nll_and_grad(x, memory=memory)
        gradients[memory] = flow.params.grads.copy()
    np.testing.assert_array_equal(gradients["recompute"], gradients["store"])
    np.testing.assert_allclose(gradients["invert"], gradients["store"], rtol=1e-9, atol=1e-11)


def binary_vectors(features):
    return np.array(list(itertools.product([0.0, 1.0], repeat=features)))


@pytest.mark.parametrize("backend", BACKENDS)
@networks
def test_bernoulli_probabilities_sum_to_one(options, backend):
    network = MADE(6, (10,), 1, "tanh", zero_last=False, **options)
    base = Autoregressive(Bernoulli(), network)
    flow = Flow(base, Chain(()), backend=backend, dtype="float64", context_features=network.context)
    testing.randomize(flow.params, seed=2, scale=2)
    x = binary_vectors(6)
    context = np.ones((64, network.context)) if network.context else None
    for draw in range(3):
        flow.use_masks(draw)
        total = np.exp(flow.backend.to_numpy(flow.log_prob(x, context))).sum()
        assert total == pytest.approx(1, abs=1e-12)
    mixed = np.exp(ensemble_log_prob(flow, x, 3, context))
    assert mixed.sum() == pytest.approx(1, abs=1e-12)


def test_an_ensemble_is_the_mean_of_likelihoods():
    flow = made(5, (16,), random_order=True, masks=0, dtype="float64")
    testing.randomize(flow.params, seed=3, scale=3)
    x = binary_vectors(5)
    parts = []
    for draw in range(4):
        flow.use_masks(draw)
        parts.append(np.exp(flow.log_prob(x)))
    flow.use_masks(0)
    expected = np.mean(parts, axis=0)
    np.testing.assert_allclose(np.exp(ensemble_log_prob(flow, x, 4)), expected, rtol=1e-12)
    np.testing.assert_array_equal(np.exp(flow.log_prob(x)), parts[0])  # back at draw 0
    with pytest.raises(ConfigurationError, match="draws is 0"):
        ensemble_log_prob(flow, x, 0)


@pytest.mark.parametrize("output", ["bernoulli", "mixture"])
@pytest.mark.parametrize("options", [{}, {"random_order": True}, {"direct": True, "context": 1}])
def test_the_gradient_of_an_autoregressive_density(output, options):
    conditional = Bernoulli() if output == "bernoulli" else GaussianMixture(3)
    network = MADE(
        4, (7, 6), conditional.parameters_per_feature, "tanh", zero_last=False, **options
    )
    base = Autoregressive(conditional, network)
    flow = Flow(
        base, Chain(()), backend="reference", dtype="float64", context_features=network.context
    )
    testing.randomize(flow.params, seed=5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)) if output == "mixture" else rng.integers(0, 2, (5, 4)) * 1.0
    context = rng.normal(size=(5, network.context)) if network.context else None
    testing.check_flow_gradients(flow, x, context)
    dlog_prob = rng.normal(size=5)
    dx, dcontext = base.backward(base.forward(x, context)[1], dlog_prob)
    if output == "mixture":
        by_differences = testing.jacobian(lambda x: base.log_prob(x, context), x)[:, 0]
        np.testing.assert_allclose(dx, dlog_prob[:, None] * by_differences, atol=1e-8)
    if network.context:
        by_differences = testing.jacobian(lambda c: base.log_prob(x, c), context)[:, 0]
        np.testing.assert_allclose(dcontext, dlog_prob[:, None] * by_differences, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_have_the_probabilities_of_the_density(backend):
    flow = made(3, (8,), random_order=True, backend=backend, dtype="float64")
    testing.randomize(flow.params, seed=1, scale=2)
    x = flow.backend.to_numpy(flow.sample(20_000, seed=0))
    counts = np.bincount((x @ [4, 2, 1]).astype(int), minlength=8) / len(x)
    expected = np.exp(flow.backend.to_numpy(flow.log_prob(binary_vectors(3))))
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / len(x))


def test_samples_of_a_mixture():
    """Moments of each conditional: x_1 given that x_0 fell into a narrow bin."""
    flow = made(2, (8,), "mixture", components=3, dtype="float64", backend="reference")
    testing.randomize(flow.params, seed=1, scale=1)
    x = flow.sample(100_000, seed=0)
    given = x[np.abs(x[:, 0] - 0.3) < 0.05, 1]
    at = np.linspace(-12, 12, 4001)
    points = np.stack([np.full_like(at, 0.3), at], axis=1)
    density = np.exp(flow.log_prob(points))
    density /= density.sum()
    mean = (at * density).sum()
    deviation = np.sqrt(((at - mean) ** 2 * density).sum())
    assert len(given) > 500
    assert abs(given.mean() - mean) < 4 * deviation / np.sqrt(len(given)) + 0.02
    assert given.std() == pytest.approx(deviation, rel=0.1)
    at_zero = flow.sample(3, seed=0, temperature=0.0)
    assert np.isfinite(at_zero).all()


def test_temperature_zero_takes_the_likelier_value():
    flow = made(4, (8,), dtype="float64", backend="reference")
    testing.randomize(flow.params, seed=1, scale=2)
    (x,) = np.unique(flow.sample(50, seed=0, temperature=0.0), axis=0)
    params = flow.base.network.forward(x[None])[0][0]
    np.testing.assert_array_equal(x, params > 0)


def test_a_new_mixture_covers_the_standard_normal():
    flow = made(3, (8,), "mixture", components=10, dtype="float64")
    x = flow.sample(20_000, seed=0)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(x.std(axis=0), np.sqrt(4 / 3 * (1 - 1 / 100) + 0.04), rtol=0.03)
    rows = np.random.default_rng(0).normal(size=(200, 3))
    flow.nll_and_grad(rows)
    means = flow.params.grad("base.network.biases.1").reshape(3, 10, 3)[1]
    assert len(np.unique(means.round(12))) == 30  # the components differ


def test_binarize():
    backend = get_backend("numpy")
    grey = np.tile(np.array([0, 51, 255], np.uint8), (20_000, 1))
    x = binarize(backend, grey, seed=0, step=0)
    assert set(np.unique(x)) == {0, 1}
    np.testing.assert_allclose(x.mean(axis=0), [0, 0.2, 1], atol=0.012)
    assert (binarize(backend, grey, seed=0, step=1) != x).any()


def test_training_on_binary_images_resumes_to_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    images = (255 * rng.uniform(size=(40, 6))).astype(np.uint8)

    def model():
        return made(6, (12,), random_order=True, random_degrees=True, masks=0, seed=1)

    def options(epochs):
        return TrainingOptions(epochs=epochs, batch_size=8, integers="binarize", seed=2)

    whole = model()
    fit(whole, images, images[:8], options=options(4), progress_bar=False)
    fit(model(), images, images[:8], options=options(2), out=tmp_path, progress_bar=False)
    resumed = model()
    fit(
        resumed, images, images[:8], options=options(4), out=tmp_path, resume=True,
        progress_bar=False,
    )  # fmt: skip
    assert resumed.params.values.tobytes() == whole.params.values.tobytes()


@pytest.mark.parametrize("output", ["bernoulli", "gaussian", "mixture"])
def test_saved_and_loaded(output, tmp_path):
    flow = made(5, (8,), output, random_order=True, masks=2, context_features=1)
    testing.randomize(flow.params, seed=1)
    flow.save(tmp_path / "made.safetensors")
    again = Flow.load(tmp_path / "made.safetensors")
    context = np.ones((3, 1))
    np.testing.assert_array_equal(flow.sample(3, context=context), again.sample(3, context=context))


def test_bad_input():
    with pytest.raises(ConfigurationError, match="widths are"):
        MADE(0, (3,), 1)
    with pytest.raises(ConfigurationError, match="masks is 4"):
        MADE(3, (3,), 1, masks=4)
    with pytest.raises(ConfigurationError, match="unknown activation"):
        MADE(3, (3,), 1, "sine")
    with pytest.raises(ConfigurationError, match="needs 2 for 3"):
        MaskedAutoregressive(Affine(3), MADE(3, (3,), 1))
    with pytest.raises(ConfigurationError, match="needs 30"):
        Autoregressive(GaussianMixture(10), MADE(3, (3,), 1))
    with pytest.raises(ConfigurationError, match="components is 0"):
        GaussianMixture(0)
    with pytest.raises(ConfigurationError, match="unknown output"):
        made(3, output="poisson")
    with pytest.raises(ConfigurationError, match="unknown map"):
        maf(3, map="cubic")
    with pytest.raises(ConfigurationError, match="layers is 0"):
        maf(3, layers=0)
    with pytest.raises(DomainError, match="over 0 and 1"):
        made(2).log_prob(np.array([[0.0, 0.5]]))
    with pytest.raises(DomainError, match="over 0 and 1"):
        made(2).nll_and_grad(np.array([[0.0, 0.5]]))
    with pytest.raises(DomainError, match="over 0 and 1"):
        fit(made(2), np.array([[0.0, 0.5]]), options=TrainingOptions())
    with pytest.raises(ShapeError, match="needs a context"):
        made(2, context_features=1).sample(3)
    with pytest.raises(ConfigurationError, match="base without parameters"):
        flow = maf(2, layers=1, components=2)
        flow.reverse_kl_and_grad(lambda x: (x[:, 0], x), 4, seed=0)
    with pytest.raises(ConfigurationError, match="integers is"):
        TrainingOptions(integers="round")
