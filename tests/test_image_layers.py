"""Bijections of images: what each one is, and multi-scale flows as a whole."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from cases import BACKENDS, image_coupling, two_scales

from npflow import Flow, Memory, testing
from npflow.bijections import (
    ActNorm,
    BatchNorm,
    Bijection,
    Chain,
    Coupling,
    Diagonal,
    FactorOut,
    ImageCoupling,
    Inverse,
    InvertibleConv1x1,
    Reshape,
    Squeeze,
    checkerboard,
    checkerboard_channels,
    half,
)
from npflow.bijections.chain import check_drift
from npflow.distributions import StandardNormal
from npflow.elementwise import Affine
from npflow.errors import (
    ConfigurationError,
    InversionDriftError,
    NonFiniteError,
    ShapeError,
    SingularMatrixError,
)
from npflow.models import glow, realnvp_multiscale
from npflow.networks import MLP, ConvNet
from npflow.params import Component

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
PULL_BACK = {
    "forward": "backward",
    "training_forward": "backward",
    "inverse": "inverse_backward",
}
each_direction = pytest.mark.parametrize("direction", PULL_BACK)
RNG = np.random.default_rng(5)


def images(flow: Flow, rows: int = 6, seed: int = 0):
    """Of normal numbers, or of grey values if a logit comes first."""
    rng = np.random.default_rng(seed)
    shape = (rows, *flow.shape)
    first = type(flow.bijection.layers[0]).__name__
    return flow.backend.array(
        256 * rng.uniform(size=shape) if first == "Logit" else rng.normal(size=shape)
    )


def small_glow(backend="numpy", dtype="float64", steps=2, lam=None, scale=0.1, **options) -> Flow:
    """Actnorms set from data and random numbers added: log-dets of 1 to 20, not the identity."""
    flow = glow((8, 8, 1), 2, steps, 4, lam=lam, backend=backend, dtype=dtype, **options)
    context = options.get("context_features", 0)
    flow.initialize(images(flow), flow.backend.array(np.zeros((6, context))) if context else None)
    testing.randomize(flow.params, scale=scale)
    return flow


def scales_of(flow: Flow, z) -> list:
    """The latents of each scale, the last first."""
    stops = [f.features for f in flow.bijection.layers if isinstance(f, FactorOut)][::-1]
    first = z.shape[1] - sum(stops)
    return np.split(flow.backend.to_numpy(z), first + np.cumsum([0, *stops])[:-1], axis=1)


# Squeeze, Reshape


@each_backend
def test_squeeze_by_its_formula(backend):
    layer = Squeeze((4, 6, 3))
    testing.prepare(layer, backend)
    x = np.arange(2 * 4 * 6 * 3, dtype=float).reshape(2, 4, 6, 3)
    z = layer.backend.to_numpy(layer.forward(layer.backend.array(x))[0])
    assert z.shape == (2, *layer.squeezed) == (2, 2, 3, 12)
    for b, i, j, u, v, c in np.ndindex(2, 2, 3, 2, 2, 3):
        assert z[b, i, j, (2 * u + v) * 3 + c] == x[b, 2 * i + u, 2 * j + v, c]


@pytest.mark.parametrize("flip", [False, True])
def test_a_squeezed_checkerboard_is_a_choice_of_channels(flip):
    board = np.zeros((6 * 4, 2))
    board[list(checkerboard(6, 4, flip))] = 1
    layer = Squeeze((6, 4, 2))
    testing.prepare(layer)
    z, _, _ = layer.forward(board.reshape(1, 6, 4, 2))
    expected = np.isin(np.arange(8), checkerboard_channels(2, flip))
    np.testing.assert_array_equal(z, np.broadcast_to(expected, z.shape))


# Couplings


@each_backend
@pytest.mark.parametrize("kept", ["checkerboard", "checkerboard-flipped"])
def test_a_checkerboard_is_equation_9_of_realnvp(backend, kept):
    """z = b x + (1 - b) (x e^s + t) with s and t computed from b x; arXiv:1605.08803."""
    layer = image_coupling((3, 5, 2), kept, context=1)
    testing.prepare(layer, backend)
    array, host = layer.backend.array, layer.backend.to_numpy
    x, context = RNG.normal(size=(4, 3, 5, 2)), RNG.normal(size=(4, 1))
    i, j = np.indices((3, 5))
    b = ((i + j) % 2 == (kept == "checkerboard-flipped"))[..., None].astype(float)
    params = host(layer.conditioner.forward(array(b * x), array(context))[0])
    t, s = params[..., :2], host(layer.map.bounds.value) * np.tanh(params[..., 2:])
    z, log_det, _ = layer.forward(array(x), array(context))
    expected = b * x + (1 - b) * (x * np.exp(s) + t)
    np.testing.assert_allclose(host(z), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(host(log_det), ((1 - b) * s).sum((1, 2, 3)), rtol=0, atol=1e-13)
    assert np.abs(host(z) - x).max() > 0.1 and np.abs(host(log_det)).min() > 0.01


@each_backend
@pytest.mark.parametrize("kept", [half(5), half(5, flip=True), (3, 0)])
def test_with_a_network_of_single_pixels_it_is_a_coupling_of_every_pixel(backend, kept):
    """The same values, log-dets and gradients as those of a Coupling over the pixels' channels."""
    shape, n = (2, 3, 5), len(kept)
    outputs = 2 * (5 - n)
    convnet = ConvNet(n, 4, outputs, "tanh", zero_last=False, kernels=(1, 1, 1))
    image = ImageCoupling(shape, kept, Affine(5 - n), convnet)
    vector = Coupling(5, kept, Affine(5 - n), MLP(n, (4, 4), outputs, "tanh", zero_last=False))
    stores = [testing.prepare(layer, backend) for layer in (image, vector)]
    mlp = vector.conditioner
    for conv, weight, bias in zip(convnet.layers, mlp.weights, mlp.biases, strict=True):
        weight.value[...] = conv.weight.value[0, 0]
        bias.value[...] = conv.bias.value
    vector.map.bounds.value[...] = image.map.bounds.value
    x, dz = (image.backend.array(RNG.normal(size=(4, *shape))) for _ in range(2))
    dlog_det = image.backend.array(RNG.normal(size=4))
    of_pixel = image.backend.xp.repeat(dlog_det, 6)
    for direction in ("forward", "inverse"):
        for store in stores:
            store.zero_grads()
        z, log_det, cache = getattr(image, direction)(x)
        rows, log_dets, row_cache = getattr(vector, direction)(x.reshape(-1, 5))
        pull_back = PULL_BACK[direction]
        dx, _ = getattr(image, pull_back)(cache, dz.copy(), dlog_det)
        drows, _ = getattr(vector, pull_back)(row_cache, dz.reshape(-1, 5).copy(), of_pixel)
        pairs = [
            (z.reshape(-1, 5), rows),
            (log_det, log_dets.reshape(4, 6).sum(axis=1)),
            (dx.reshape(-1, 5), drows),
            (image.map.bounds.grad, vector.map.bounds.grad),
        ]
        for conv, weight, bias in zip(convnet.layers, mlp.weights, mlp.biases, strict=True):
            pairs += [(conv.weight.grad[0, 0], weight.grad), (conv.bias.grad, bias.grad)]
        for found, expected in pairs:
            found, expected = (image.backend.to_numpy(a) for a in (found, expected))
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
            assert np.abs(expected).max() > 1e-3


@dataclass(eq=False)
class OnPixels(Component):
    """A network of an image, for a coupling of the squeezed image: a test's own wiring."""

    net: ConvNet
    shape: tuple[int, int, int]
    kept: tuple[int, ...]

    def __post_init__(self):
        self.inputs, self.outputs = 2 * self.shape[2], 2 * self.net.outputs
        self.squeeze = Squeeze(self.shape)

    def forward(self, x, context=None):
        seen = np.zeros((len(x), *self.squeeze.squeezed))
        seen[..., list(self.kept)] = x
        params, cache = self.net.forward(self.squeeze.inverse(seen)[0], context)
        others = np.setdiff1d(np.arange(4 * self.shape[2]), self.kept)
        parts = np.split(params, 2, axis=3)  # shifts, raw log-scales
        return np.concatenate([self.squeeze.forward(p)[0][..., others] for p in parts], 3), cache


@pytest.mark.parametrize("flip", [False, True])
def test_a_checkerboard_is_a_choice_of_channels_of_the_squeezed_image(flip):
    shape = (4, 6, 2)
    kept = "checkerboard-flipped" if flip else "checkerboard"
    layer = image_coupling(shape, kept, map=lambda c: Affine(c, 0.9, learn_bound=False))
    testing.prepare(layer)
    channels = checkerboard_channels(2, flip)
    net = OnPixels(layer.conditioner, shape, channels)
    squeezed = ImageCoupling((2, 3, 8), channels, Affine(4, 0.9, learn_bound=False), net)
    chain = Chain((Squeeze(shape), squeezed, Inverse(Squeeze(shape))))
    testing.prepare(chain)  # the network is that of `layer`
    x = RNG.normal(size=(3, *shape))
    for direction in ("forward", "inverse"):
        z, log_det, _ = getattr(layer, direction)(x)
        expected, expected_log_det, _ = getattr(chain, direction)(x)
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(log_det, expected_log_det, rtol=0, atol=1e-12)
        assert np.abs(z - x).max() > 0.1


# Factoring out


def test_the_order_of_latents_is_rest_last_first():
    """Every number of x is in z once, where FactorOut's page says."""
    chain = Chain(
        (
            FactorOut((2, 2, 3)),  # the last channel of three leaves
            Squeeze((2, 2, 2)),
            FactorOut((1, 1, 8)),
            Reshape((1, 1, 4), (4,)),
        )
    )
    testing.prepare(chain)
    x = np.arange(2 * 12, dtype=float).reshape(2, 2, 2, 3)
    z, log_det, _ = chain.forward(x)
    #    pixel (0, 0), pixel (0, 1) | pixel (1, 0), (1, 1)  | channel 2 of all pixels
    assert z[0].tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11]
    np.testing.assert_array_equal(z[1], z[0] + 12)
    np.testing.assert_array_equal(log_det, 0)
    np.testing.assert_array_equal(chain.inverse(z)[0], x)


@each_backend
@pytest.mark.parametrize("lam", [None, 1e-3])
def test_a_learned_prior_is_a_gaussian_given_the_rest(backend, lam):
    """log p(x) = log N(h) + log N(x_b; mean(h), deviation(h)), written out."""
    flow = glow((4, 4, 1), 2, 1, 4, lam=lam, backend=backend, dtype="float64")
    number = next(k for k, f in enumerate(flow.bijection.layers) if isinstance(f, FactorOut))
    prior = flow.bijection.layers[number - 1]
    testing.randomize(flow.params, scale=0.3)
    host, x = flow.backend.to_numpy, images(flow)
    steps = {k: (z, log_det) for k, z, log_det in flow.bijection.trace(x)}
    y = steps[number - 2][0]  # the prior is layer number - 1
    rest = steps[len(flow.bijection.layers) - 1][0]
    log_det = sum(log_det for k, (_, log_det) in steps.items() if k != number - 1)
    h = flow.backend.array(host(y)[..., :2])
    params = host(prior.conditioner.forward(h)[0])
    log_scale = host(prior.map.bounds.value) * np.tanh(params[..., 2:])
    mean, deviation = -params[..., :2] * np.exp(-log_scale), np.exp(-log_scale)
    standard = (host(y)[..., 2:] - mean) / deviation
    log_gauss = -0.5 * standard**2 - np.log(deviation) - 0.5 * math.log(2 * math.pi)
    log_rest = -0.5 * host(rest) ** 2 - 0.5 * math.log(2 * math.pi)
    expected = log_gauss.sum((1, 2, 3)) + log_rest.sum(1) + host(log_det)
    np.testing.assert_allclose(host(flow.log_prob(x)), expected, rtol=1e-12)
    assert np.abs(log_scale).max() > 0.05 and np.abs(mean).max() > 0.05


def test_without_a_learned_prior_what_leaves_is_a_latent_as_it_is():
    for learned_prior in (False, True):
        flow = small_glow(learned_prior=learned_prior)
        number = next(k for k, f in enumerate(flow.bijection.layers) if isinstance(f, FactorOut))
        steps = {k: z for k, z, _ in flow.bijection.trace(images(flow))}
        leaving = steps[number - 1 - learned_prior][..., 2:]
        z = scales_of(flow, flow.to_latent(images(flow)))[-1]
        assert (z == leaving.reshape(6, -1)).all() == (not learned_prior)


# Whole flows


@each_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 5e-14)])
@pytest.mark.parametrize(("form", "lam"), [("dense", None), ("plu", None), ("dense", 1e-3)])
def test_a_glow_and_its_inverse(backend, dtype, tolerance, form, lam):
    flow = small_glow(backend, dtype, steps=4, form=form, lam=lam)
    x = images(flow)
    z, log_det, _ = flow.bijection.forward(x)
    assert z.shape == (6, 64) and z.dtype == log_det.dtype == dtype
    assert abs(log_det).max() > 1, "the map must not be near the identity"
    testing.check_inverse(flow.bijection, x, tolerance=tolerance)


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_realnvp_of_two_scales_and_its_inverse(squeezed):
    flow = realnvp_multiscale(
        (8, 8, 1), (2, 1), (2, 0), width=3, squeezed_checkerboards=squeezed, blocks=1, lam=None,
        backend="numpy", dtype="float64",
    )  # fmt: skip
    flow.initialize(images(flow, 30))
    testing.randomize(flow.params, scale=0.1)
    assert abs(flow.bijection.forward(images(flow))[1]).max() > 1
    testing.check_inverse(flow.bijection, images(flow))


def test_the_log_det_of_a_glow_is_that_of_its_jacobian():
    flow = glow((4, 4, 1), 2, 2, 3, lam=None, form="plu", backend="numpy", dtype="float64")
    x = images(flow, 3)
    flow.initialize(images(flow, 20))
    for name, slot in flow.params.table.items():  # no kinks: relus that are all on
        if "conditioner" in name and name.endswith("bias"):
            flow.params.value(name)[...] = 9.0 if slot.shape == (3,) else 0.1
    last = [f.conditioner.layers[-1] for f in flow.bijection.layers if hasattr(f, "conditioner")]
    for layer in last:
        layer.weight.value[...] = RNG.normal(size=layer.weight.shape) * 0.01
    testing.check_log_det(flow.bijection, x)
    assert abs(flow.bijection.forward(x)[1]).max() > 1


@each_backend
def test_a_row_does_not_depend_on_the_others(backend):
    flow = small_glow(backend)
    x, host = images(flow), flow.backend.to_numpy
    alone = np.concatenate([host(flow.log_prob(row[None])) for row in x])
    np.testing.assert_allclose(host(flow.log_prob(x)), alone, rtol=1e-12)


@each_dtype
def test_backends_agree(dtype):
    flows = [small_glow(backend, dtype) for backend in ("reference", "numpy")]
    flows[1].params.load(flows[0].params.to_numpy())
    x = images(flows[0])
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    losses = [flow.nll_and_grad(x) for flow in flows]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
    grads = [flow.params.grads for flow in flows]
    np.testing.assert_allclose(grads[1], grads[0], rtol=0, atol=tolerance * abs(grads[0]).max())


@each_backend
def test_temperature_scales_the_latents_of_every_scale(backend):
    flow = small_glow(backend)
    host = flow.backend.to_numpy
    latents = [flow.to_latent(flow.sample(40, seed=3, temperature=t)) for t in (1.0, 0.5)]
    full, cool = (scales_of(flow, z) for z in latents)
    assert [part.shape for part in full] == [(40, 32), (40, 32)]
    for at_one, at_half in zip(full, cool, strict=True):
        np.testing.assert_allclose(at_half, 0.5 * at_one, rtol=0, atol=1e-12)
        assert 0.9 < at_one.std() < 1.1
    zero = flow.sample(2, seed=3, temperature=0.0)
    expected = flow.from_latent(flow.backend.array(np.zeros((2, 64))))
    np.testing.assert_array_equal(host(zero), host(expected))


@each_backend
def test_a_sample_has_the_log_prob_that_log_prob_gives(backend):
    flow = small_glow(backend, lam=1e-3)
    x, log_prob = flow.sample_and_log_prob(5, seed=4)
    assert x.shape == (5, 8, 8, 1)
    host = flow.backend.to_numpy
    np.testing.assert_allclose(host(flow.log_prob(x)), host(log_prob), rtol=1e-10)


@pytest.mark.parametrize("levels", [1, 3])
def test_initialize_sets_the_actnorms_of_all_scales(levels):
    flow = glow((8, 8, 2), levels, 2, 4, backend="numpy", dtype="float64")
    testing.randomize(flow.params, scale=0.1)  # so that no statistics are right by chance
    x = 256 * np.random.default_rng(0).uniform(size=(50, 8, 8, 2))
    flow.initialize(x)
    checked = 0
    for k, z, _ in flow.bijection.trace(x):
        if isinstance(flow.bijection.layers[k], ActNorm):
            rows = z.reshape(-1, z.shape[-1])
            np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
            np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-10)
            checked += 1
    assert checked == 2 * levels


def test_statistics_behind_a_factor_out():
    """A batch norm of the rest takes the moments of the rest."""
    layers = (FactorOut((2, 2, 2)), Reshape((2, 2, 1), (4,)), BatchNorm(4))
    flow = Flow(StandardNormal(8), Chain(layers), shape=(2, 2, 2), dtype="float64")
    x = RNG.normal(3, 2, size=(50, 2, 2, 2))
    flow.update_statistics(x)
    z = flow.to_latent(x)
    np.testing.assert_allclose(z[:, :4].mean(axis=0), 0, atol=1e-10)
    np.testing.assert_array_equal(z[:, 4:], x[..., 1].reshape(50, 4))


@pytest.mark.parametrize("memory", ["store", "recompute", "invert", Memory("invert", 3)])
def test_gradient_of_the_loss(memory):
    flow = glow((4, 4, 1), 2, 2, 2, lam=None, backend="numpy", dtype="float64")
    flow.initialize(images(flow, 20))
    for layer in flow.bijection.layers:  # no kinks: a small step does not switch a relu
        if isinstance(layer, ImageCoupling):
            for conv in layer.conditioner.layers[:-1]:
                conv.bias.value[...] = 9.0
    testing.check_flow_gradients(flow, images(flow), memory=memory)


@each_backend
def test_files_give_the_same_flow_to_the_bit(backend, tmp_path):
    flow = small_glow(backend, "float32", form="plu", lam=1e-3)
    flow.save(tmp_path / "glow.safetensors")
    loaded = Flow.load(tmp_path / "glow.safetensors", backend=backend)
    assert loaded.config() == flow.config()
    x, host = images(flow), flow.backend.to_numpy
    np.testing.assert_array_equal(host(loaded.log_prob(x)), host(flow.log_prob(x)))
    np.testing.assert_array_equal(host(loaded.sample(3, seed=1)), host(flow.sample(3, seed=1)))


@each_backend
def test_labels_as_context(backend):
    flow = small_glow(backend, context_features=3)
    x, host = images(flow), flow.backend.to_numpy
    one, other = (flow.backend.array(np.eye(3)[[k] * 6]) for k in (0, 1))
    log_probs = [host(flow.log_prob(x, label)) for label in (one, other)]
    assert np.abs(log_probs[0] - log_probs[1]).min() > 1e-3
    z = flow.to_latent(x, one)
    np.testing.assert_allclose(host(flow.from_latent(z, one)), host(x), rtol=0, atol=1e-12)
    assert np.abs(host(flow.from_latent(z, other)) - host(x)).max() > 1e-2
    with pytest.raises(ShapeError, match="needs a context"):
        flow.log_prob(x)


# Memory schedules


def walk_both_ways(flow: Flow, direction: str, memory: Memory):
    """z, log_det, dx and all parameter gradients on the host, and the drift."""
    chain, host, rng = flow.bijection, flow.backend.to_numpy, np.random.default_rng(1)
    x = images(flow)
    if direction == "inverse":
        x = flow.backend.array(rng.normal(size=(6, flow.base.features)))
    flow.params.zero_grads()
    z, log_det, cache = getattr(chain, direction)(x, memory=memory)
    dz, dlog_det = (flow.backend.array(rng.normal(size=s)) for s in (z.shape, len(x)))
    dx, _ = getattr(chain, PULL_BACK[direction])(cache, dz, dlog_det)
    values = [host(a).copy() for a in (z, log_det, dx, flow.params.grads)]
    return values, check_drift(chain, cache)


@each_backend
@each_direction
@each_dtype
def test_recompute_gives_the_bits_of_store(backend, direction, dtype):
    flow = small_glow(backend, dtype)
    stored, drift = walk_both_ways(flow, direction, Memory("store"))
    recomputed, _ = walk_both_ways(flow, direction, Memory("recompute"))
    for a, b in zip(stored, recomputed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert drift == 0


# The largest |difference of the gradients| relative to the largest gradient, and the largest drift.
INVERT_TOLERANCE = {
    ("float32", 4): 5e-6,
    ("float32", 16): 1e-5,
    ("float64", 4): 1e-14,
    ("float64", 16): 5e-14,
}


@each_backend
@each_direction
@pytest.mark.parametrize(("dtype", "steps"), INVERT_TOLERANCE)
def test_invert_agrees_with_store(backend, direction, dtype, steps):
    flow = small_glow(backend, dtype, steps)
    stored, _ = walk_both_ways(flow, direction, Memory("store"))
    inverted, drift = walk_both_ways(flow, direction, Memory("invert"))
    for a, b in zip(stored[:2], inverted[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    tolerance = INVERT_TOLERANCE[dtype, steps]
    for a, b in zip(stored[2:], inverted[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())
    assert 0 < drift < tolerance


@each_direction
def test_anchors_stop_the_drift(direction):
    flow = small_glow(dtype="float32", steps=16)
    drifts = [walk_both_ways(flow, direction, Memory("invert", k))[1] for k in (0, 4, 1)]
    assert drifts[0] > drifts[1] >= drifts[2] > 0
    stored, _ = walk_both_ways(flow, direction, Memory("store"))
    anchored, _ = walk_both_ways(flow, direction, Memory("invert", 1))
    for a, b in zip(stored[2:], anchored[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max())


@each_direction
@pytest.mark.parametrize("schedule", ["recompute", "invert"])
@pytest.mark.parametrize("nest", [lambda b: b, lambda b: Chain((b,)), Inverse])
def test_a_chain_that_factors_out_may_stand_in_another(direction, schedule, nest):
    """Also the other way round, where its latents are the data."""
    layers = (Diagonal(16), nest(two_scales(4)), Diagonal(16))
    flow = Flow(StandardNormal(16), Chain(layers), backend="reference", dtype="float64")
    testing.randomize(flow.params, scale=0.3)
    stored, _ = walk_both_ways(flow, direction, Memory("store"))
    found, _ = walk_both_ways(flow, direction, Memory(schedule))
    for a, b in zip(stored, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("memory", ["recompute", "invert"])
def test_gradient_of_the_reverse_kl_by_any_schedule(memory):
    flow = small_glow()
    gradients = []
    for schedule in ("store", memory):
        flow.reverse_kl_and_grad(
            lambda x: (-(x**4).sum((1, 2, 3)), -4 * x**3), 8, 0, memory=schedule
        )
        gradients.append(flow.params.grads.copy())
    largest = np.abs(gradients[0]).max()
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0, atol=1e-13 * largest)
    assert largest > 1e-2


@dataclass(eq=False)
class LossyPixels(Bijection):
    """A layer whose inverse misses by 0.01."""

    def forward(self, x, context=None):
        return x + 1, self.backend.xp.zeros(len(x), x.dtype), ()

    def inverse(self, z, context=None):
        return z - 1.01, self.backend.xp.zeros(len(z), z.dtype), ()

    def backward(self, cache, dz, dlog_det):
        return dz, None

    def inverse_backward(self, cache, dx, dlog_det):
        return dx, None


@each_direction
def test_drift_behind_a_factor_out_is_named(direction):
    layers = (ActNorm(2), FactorOut((2, 2, 2)), LossyPixels(), Reshape((2, 2, 1), (4,)))
    flow = Flow(StandardNormal(8), Chain(layers), shape=(2, 2, 2), dtype="float64")
    with pytest.raises(InversionDriftError, match=r"layer 2 \(LossyPixels\)"):
        walk_both_ways(flow, direction, Memory("invert"))


# Faults


def test_the_layer_behind_a_factor_out_that_overflows_is_named():
    layers = (ActNorm(4), FactorOut((2, 2, 4)), ActNorm(2), Reshape((2, 2, 2), (8,)))
    flow = Flow(StandardNormal(16), Chain(layers), shape=(2, 2, 4), dtype="float32")
    flow.bijection.layers[2].log_scale.value[...] = 200  # finite, and e^200 is not in float32
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NonFiniteError, match=r"layer 2 \(ActNorm\) forward"),
    ):
        flow.log_prob(images(flow))


def test_a_singular_weight_behind_a_factor_out_is_named():
    flow = small_glow()
    number = max(k for k, f in enumerate(flow.bijection.layers) if isinstance(f, InvertibleConv1x1))
    flow.bijection.layers[number].weight.value[:, 0] = 0
    with pytest.raises(SingularMatrixError, match=f"layer {number} .InvertibleConv1x1.*singular"):
        flow.log_prob(images(flow))


def test_too_many_levels_for_the_image():
    with pytest.raises(ConfigurationError, match=r"7 x 7 pixels.*even sides"):
        glow((28, 28, 1), levels=3, steps=1)
    glow((28, 28, 1), levels=2, steps=1, width=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Squeeze((4, 3, 1)), "4 x 3 pixels cannot be squeezed"),
        (lambda: Reshape((2, 3), (5,)), "6 numbers and .* 5; expected as many"),
        (lambda: FactorOut((2, 2, 1)), "1 channel cannot be halved"),
        (lambda: glow((8, 8, 1), levels=0), "levels is 0"),
        (lambda: glow((8, 8, 1), steps=0), "steps 0"),
        (lambda: glow((8, 8)), r"shape is \(8, 8\); expected height, width and channels"),
        (lambda: glow((8, 8, 1), form="qr"), "form is 'qr'"),
        (lambda: image_coupling((2, 2, 2), "columns"), "unknown mask 'columns'"),
        (lambda: image_coupling((1, 1, 2), "checkerboard"), "one pixel has no checkerboard"),
        (
            lambda: ImageCoupling((2, 2, 2), (0, 1), Affine(1), ConvNet(2, 3, 2)),
            r"kept is \(0, 1\) for 2 channels",
        ),
        (lambda: image_coupling((2, 2, 3), (0, 0)), r"kept is \(0, 0\) for 3 channels"),
        (lambda: image_coupling((2, 2, 3), (0, 5)), r"kept is \(0, 5\) for 3 channels"),
        (
            lambda: ImageCoupling((2, 2, 3), (), Affine(3), ConvNet(1, 3, 6)),
            r"kept is \(\) for 3 channels",
        ),
        (
            lambda: ImageCoupling((2, 2, 2), (0,), Affine(1), ConvNet(2, 3, 2)),
            "maps 2 to 2 channels; this coupling needs 1 to 2",
        ),
        (
            lambda: ImageCoupling((2, 2, 3), (0,), Affine(4), ConvNet(1, 3, 4)),
            "over 4 features; expected the 2 transformed channels",
        ),
    ],
)
def test_what_cannot_work_is_refused(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "given", "other"),
    [
        # As many numbers, so that rows would be mixed without a word:
        (Squeeze((2, 2, 1)), (3, 4, 4, 1), (3, 2, 2, 4)),
        (Reshape((2, 2, 1), (4,)), (3, 2, 2, 4), (3, 2, 2, 1)),
        (image_coupling((2, 2, 2), (0,)), (3, 4, 2, 2), (3, 2, 2, 4)),
        (image_coupling((2, 2, 2), "checkerboard"), (3, 2, 2, 4), (3, 8)),
    ],
)
def test_images_of_another_shape_are_refused(layer, given, other):
    testing.prepare(layer)
    for direction, shape in (("forward", given), ("inverse", other)):
        with pytest.raises(ShapeError, match=r"got shape \(3, .*expected \(batch, "):
            getattr(layer, direction)(np.zeros(shape))


def test_flows_refuse_images_of_another_shape():
    flow = small_glow()
    for shape in ((2, 64), (2, 8, 8), (2, 8, 8, 2), (2, 4, 16, 1), (8, 8, 1)):
        with pytest.raises(ShapeError, match=r"x has shape .*expected \(batch, 8, 8, 1\)"):
            flow.log_prob(np.zeros(shape))
    with pytest.raises(ShapeError, match=r"z has shape \(2, 63\); expected \(batch, 64\)"):
        flow.from_latent(np.zeros((2, 63)))


def test_a_chain_that_factors_out_ends_in_vectors():
    flow = Flow(StandardNormal(8), FactorOut((2, 2, 2)), shape=(2, 2, 2))
    with pytest.raises(ShapeError, match=r"ends in shape \(1, 2, 2, 1\).*end it in a Reshape"):
        flow.log_prob(np.zeros((1, 2, 2, 2)))
    flow = Flow(
        StandardNormal(8),
        Chain((FactorOut((2, 2, 2)), Reshape((2, 2, 2), (8,)))),
        shape=(2, 2, 2),
    )
    with pytest.raises(ShapeError, match=r"Reshape got shape \(1, 2, 2, 1\)"):
        flow.log_prob(np.zeros((1, 2, 2, 2)))
