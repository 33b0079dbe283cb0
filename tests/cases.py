"""Every layer the generic tests run over. A new layer is one line in CASES."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import hypothesis
import numpy as np
import pytest
from gpu import ON_GPU

from npflow import testing
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
    Logit,
    MaskedAutoregressive,
    Permutation,
    Planar,
    Radial,
    Reshape,
    Scale,
    Squeeze,
    checkerboard_channels,
    half,
    parity,
    reverse,
    shuffle,
    swap_halves,
)
from npflow.elementwise import Additive, Affine, RationalQuadratic
from npflow.networks import MADE, MLP, ConvNet, GatedResNet
from npflow.params import Component, walk

NETWORKS = (MLP, MADE, ConvNet, GatedResNet)

BACKENDS = ["reference", "numpy", pytest.param("cupy", marks=ON_GPU)]
# Differences take thousands of passes. In every run the cupy backend is held against the reference.
BACKENDS_OF_DIFFERENCES = [*BACKENDS[:2], pytest.param("cupy", marks=[*ON_GPU, pytest.mark.slow])]


def normal_rows(rng: np.random.Generator, rows: int, features: int) -> np.ndarray:
    return rng.normal(size=(rows, features))


def pixels(rng: np.random.Generator, rows: int, features: int) -> np.ndarray:
    return 256 * rng.uniform(size=(rows, features))


def unit_interval(rng: np.random.Generator, rows: int, features: int) -> np.ndarray:
    return rng.uniform(size=(rows, features))


@dataclass(frozen=True)
class Case:
    """A layer and the inputs it takes."""

    layer: Bijection
    features: int
    context: int = 0  # features of the context, 0 for none
    sample: Callable[[np.random.Generator, int, int], np.ndarray] = normal_rows
    step: float = testing.STEP  # of differences
    scale: float = 0.5  # of random parameters

    def inputs(self, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """x and context on the host, in float64 but exact in float32 too."""
        rng = np.random.default_rng(seed)
        x = self.sample(rng, rows, self.features).astype(np.float32).astype(np.float64)
        context = rng.normal(size=(rows, self.context)).astype(np.float32).astype(np.float64)
        return x, context if self.context else None

    def prepare(self, backend: str = "reference", dtype: str = "float64", seed: int = 0):
        """Random parameters and statistics; the ParamStore."""
        store = testing.prepare(self.layer, backend, dtype, seed, self.scale)
        x, context = self.arrays(32, seed=1000 + seed)
        self.layer.update_statistics(x, context)
        return store

    def arrays(self, rows: int, seed: int):
        """inputs on the layer's backend."""
        x, context = self.inputs(rows, seed)
        array = self.layer.backend.array
        return array(x), None if context is None else array(context)

    def smooth_arrays(self, rows: int, seed: int):
        """arrays whose pre-activations all keep 0.01 away from zero, where ReLUs have a kink, and
        which keep 0.02 away from the knots of a spline.

        Rejects the example if there are none: the bias of a unit without input may be near zero.
        """
        for attempt in range(100):
            x, context = self.arrays(rows, 1000 * seed + attempt)
            if all(_is_smooth(*call) for call in _calls(self.layer, x, context)):
                return x, context
        hypothesis.reject()


def _calls(layer: Bijection, x, context) -> list[tuple[Component, tuple, tuple]]:
    """Networks and splines that x meets on its way forward, their arguments and results."""
    found = []
    members = [m for _, m in walk(layer) if isinstance(m, (*NETWORKS, RationalQuadratic))]
    for member in members:

        def forward(*args, member=member):
            result = type(member).forward(member, *args)
            found.append((member, args, result))
            return result

        member.forward = forward
    layer.forward(x, context)
    for member in members:
        del member.forward
    return found


def _is_smooth(member: Component, args, result) -> bool:
    if isinstance(member, RationalQuadratic):
        return _off_knots(member, *(member.backend.to_numpy(a) for a in args))
    return all(bool((abs(a) > 0.01).all()) for a in _pre_activations(member, result[1]))


def _pre_activations(network: Component, cache) -> list[Any]:
    """What goes into activations with a kink, in the value or in the first derivative."""
    if isinstance(network, GatedResNet):
        return [*cache.h, *cache.inner]
    if network.activation == "tanh":
        return []
    if isinstance(network, ConvNet):
        conv = network.backend.kernels.conv_forward
        layers = zip(cache.activations[:-1], network.layers[:-1], strict=True)
        return [conv(h, m.weight.value, m.bias.value, "identity") for h, m in layers]
    layers = zip(cache.activations[:-1], network.weights[:-1], network.biases[:-1], strict=True)
    return [h @ w.value + b.value for h, w, b in layers]


def _off_knots(spline: RationalQuadratic, x, params) -> bool:
    raw = params.reshape(len(x), -1, spline.features)[:, : spline.bins]
    softmax = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    widths = 2 * spline.bound * (1e-3 + (1 - 1e-3 * spline.bins) * softmax)
    knots = np.cumsum(widths, axis=1) - spline.bound
    inner = (abs(x[:, None] - knots) > 0.02).all()
    return bool(inner and (abs(x + spline.bound) > 0.02).all())


def additive(features, kept, activation="tanh", context=0, hidden=(4, 3)) -> Coupling:
    transformed = features - len(kept)
    network = MLP(len(kept), hidden, transformed, activation, context)
    return Coupling(features, kept, Additive(transformed), network)


def affine(
    features, kept, activation="tanh", context=0, hidden=(4, 3), bound=1.0, learn_bound=True
) -> Coupling:
    transformed = features - len(kept)
    network = MLP(len(kept), hidden, 2 * transformed, activation, context)
    return Coupling(features, kept, Affine(transformed, bound, learn_bound), network)


def autoregressive(
    features, map=None, hidden=(7, 6), activation="tanh", context=0, **options
) -> MaskedAutoregressive:
    map = Affine(features) if map is None else map
    network = MADE(features, hidden, map.parameters_per_feature, activation, context, **options)
    return MaskedAutoregressive(map, network)


def spline(features, kept, activation="tanh", context=0, hidden=(4, 3), bins=4, bound=1.0):
    """About one number in three lies outside of the box."""
    transformed = features - len(kept)
    map = RationalQuadratic(transformed, bins, bound)
    outputs = map.parameters_per_feature * transformed
    network = MLP(len(kept), hidden, outputs, activation, context)
    return Coupling(features, kept, map, network)


def scattered(features: int) -> tuple[int, ...]:
    """An unordered random subset of the features."""
    order = np.random.default_rng(features).permutation(features)
    return tuple(int(i) for i in order[: 1 + (features - 1) // 3])


def realnvp_layers(d: int) -> tuple[Bijection, ...]:
    return (
        affine(d, half(d)),
        reverse(d),
        additive(d, parity(d)),
        Diagonal(d),
        affine(d, half(d, flip=True), learn_bound=False),
    )


def on_image(layer: Bijection, d: int) -> Chain:
    """A layer for images of d channels and 2 x 3 pixels, on vectors."""
    image = (2, 3, d)
    return Chain((Reshape((6 * d,), image), layer, Reshape(image, (6 * d,))))


def image_coupling(
    shape, kept, map=Affine, activation="tanh", context=0, kernels=(3, 1, 3), width=3
) -> ImageCoupling:
    """activation: of a ConvNet, or "gated" for a GatedResNet."""
    channels = shape[2]
    inputs = channels if isinstance(kept, str) else len(kept)
    transformed = channels if isinstance(kept, str) else channels - len(kept)
    map = map(transformed)
    outputs = map.parameters_per_feature * transformed
    if activation == "gated":
        network: Any = GatedResNet(inputs, width, outputs, blocks=1, context=context)
    else:
        network = ConvNet(inputs, width, outputs, activation, context, kernels=kernels)
    return ImageCoupling(shape, kept, map, network)


def of_vectors(shape, *layers) -> Chain:
    """Layers for images of this shape, from vectors to vectors."""
    return Chain((Reshape((math.prod(shape),), shape), *layers))


def image_case(shape, kept, **options) -> Case:
    layer, features = image_coupling(shape, kept, **options), math.prod(shape)
    chain = of_vectors(shape, layer, Reshape(shape, (features,)))
    return Case(chain, features, context=options.get("context", 0), scale=0.3)


def squeezed(shape) -> Chain:
    layer = Squeeze(shape)
    return of_vectors(shape, layer, Reshape(layer.squeezed, (math.prod(shape),)))


def two_scales(d: int, context: int = 0) -> Chain:
    """2 x 2 pixels of d channels, of which d // 2 are factored out."""
    shape, rest = (2, 2, d), d - d // 2
    return of_vectors(
        shape,
        image_coupling(shape, half(d), context=context),
        FactorOut(shape),
        Squeeze((2, 2, rest)),
        image_coupling((1, 1, 4 * rest), half(4 * rest, flip=True), Additive, kernels=(1, 1, 1)),
        Reshape((1, 1, 4 * rest), (4 * rest,)),
    )


def glow_step(shape, form: str, **options) -> tuple[Bijection, ...]:
    channels = shape[2]
    coupling = image_coupling(shape, half(channels), width=2, **options)
    return ActNorm(channels), InvertibleConv1x1(channels, form), coupling


def small_glow() -> Chain:
    """Three scales: of 16 numbers 8 leave first, 4 then, and 4 are left."""
    return of_vectors(
        (4, 4, 1),
        Squeeze((4, 4, 1)),
        *glow_step((2, 2, 4), "dense"),
        image_coupling((2, 2, 4), half(4), width=2, kernels=(1, 1, 1)),
        FactorOut((2, 2, 4)),
        Squeeze((2, 2, 2)),
        *glow_step((1, 1, 8), "plu", kernels=(1, 1, 1)),
        FactorOut((1, 1, 8)),
        Reshape((1, 1, 4), (4,)),
    )


# Narrow bins make steep slopes that bend within a short way: differences need small steps.
SPLINE: dict[str, Any] = {"step": 1e-4, "scale": 0.25}
IMAGE_SPLINE: dict[str, Any] = {"step": 1e-4, "scale": 0.1}  # more numbers, more sharp bends

# name -> constructor, given the number of features (2 or more)
CASES: dict[str, Callable[[int], Case]] = {
    "additive-half": lambda d: Case(additive(d, half(d)), d),
    "additive-parity": lambda d: Case(additive(d, parity(d, flip=True)), d),
    "additive-context": lambda d: Case(additive(d, half(d), context=2), d, context=2),
    "affine-half": lambda d: Case(affine(d, half(d)), d),
    "affine-half-flipped": lambda d: Case(affine(d, half(d, flip=True)), d),
    "affine-parity": lambda d: Case(affine(d, parity(d)), d),
    "affine-scattered": lambda d: Case(affine(d, scattered(d)), d),
    "affine-fixed-bound": lambda d: Case(affine(d, half(d), bound=0.7, learn_bound=False), d),
    "affine-context": lambda d: Case(affine(d, half(d), context=2), d, context=2),
    "affine-relu": lambda d: Case(affine(d, half(d), "relu"), d),
    "affine-leaky-relu": lambda d: Case(affine(d, half(d), "leaky_relu"), d),
    "affine-elu": lambda d: Case(affine(d, half(d), "elu"), d),
    "affine-linear-conditioner": lambda d: Case(affine(d, half(d), hidden=()), d),
    "affine-wide": lambda d: Case(affine(d, half(d), hidden=(24, 24)), d),
    "spline-half": lambda d: Case(spline(d, half(d)), d, **SPLINE),
    "spline-parity": lambda d: Case(
        spline(d, parity(d, flip=True), bins=7, bound=1.5), d, **SPLINE
    ),
    "spline-one-bin": lambda d: Case(spline(d, half(d), bins=1), d, **SPLINE),
    "spline-relu": lambda d: Case(spline(d, half(d), "relu"), d, **SPLINE),
    "spline-context": lambda d: Case(spline(d, half(d), context=2), d, context=2, **SPLINE),
    "reverse": lambda d: Case(reverse(d), d),
    "swap-halves": lambda d: Case(swap_halves(d), d),
    "shuffle": lambda d: Case(shuffle(d, seed=3), d),
    "cyclic-shift": lambda d: Case(Permutation((*range(1, d), 0)), d),
    "diagonal": lambda d: Case(Diagonal(d), d),
    "batch-norm": lambda d: Case(BatchNorm(d), d),
    "actnorm": lambda d: Case(ActNorm(d), d),
    "actnorm-image": lambda d: Case(on_image(ActNorm(d), d), 6 * d),
    "conv1x1-dense": lambda d: Case(InvertibleConv1x1(d), d),
    "conv1x1-plu": lambda d: Case(InvertibleConv1x1(d, "plu", seed=1), d),
    "conv1x1-dense-image": lambda d: Case(on_image(InvertibleConv1x1(d, seed=2), d), 6 * d),
    "conv1x1-plu-image": lambda d: Case(on_image(InvertibleConv1x1(d, "plu"), d), 6 * d),
    "reshape": lambda d: Case(of_vectors((1, d, 2), Reshape((1, d, 2), (2 * d,))), 2 * d),
    "squeeze": lambda d: Case(squeezed((2, 4, d)), 8 * d),
    "image-coupling": lambda d: image_case((2, 3, d), half(d)),
    "image-coupling-flipped": lambda d: image_case((2, 2, d), half(d, flip=True)),
    "image-coupling-squeezed-checkerboard": lambda d: image_case(
        (1, 2, 4 * (d // 2)), checkerboard_channels(d // 2)
    ),
    "image-coupling-checkerboard": lambda d: image_case((3, 3, 1 + d // 4), "checkerboard"),
    "image-coupling-checkerboard-flipped": lambda d: image_case(
        (3, 2, 1 + d // 4), "checkerboard-flipped", activation="elu"
    ),
    "image-coupling-context": lambda d: image_case((2, 2, d), half(d), context=2),
    "image-coupling-checkerboard-context": lambda d: image_case(
        (2, 2, 1), "checkerboard", context=2
    ),
    "image-coupling-relu": lambda d: image_case((2, 2, d), parity(d), activation="relu"),
    "image-coupling-additive": lambda d: image_case((2, 2, d), parity(d), map=Additive),
    "image-coupling-spline": lambda d: replace(
        image_case((1, 2, d), half(d), map=partial(RationalQuadratic, bins=3, bound=1.5)),
        **IMAGE_SPLINE,
    ),
    "image-coupling-checkerboard-spline": lambda d: replace(
        image_case((2, 3, 1), "checkerboard", map=partial(RationalQuadratic, bins=3, bound=1.5)),
        **IMAGE_SPLINE,
    ),
    "image-coupling-gated": lambda d: image_case((2, 2, d), half(d), activation="gated"),
    "multi-scale": lambda d: Case(two_scales(d), 4 * d),
    "multi-scale-context": lambda d: Case(two_scales(d, context=1), 4 * d, context=1),
    "multi-scale-nested": lambda d: Case(
        Chain((two_scales(d), reverse(4 * d), Inverse(two_scales(d)))), 4 * d, scale=0.2
    ),
    "inverse-multi-scale": lambda d: Case(Inverse(two_scales(d)), 4 * d),
    "glow": lambda d: Case(small_glow(), 16, scale=0.2),
    "logit-pixels": lambda d: Case(Logit(lam=0.05, levels=256.0), d, sample=pixels, step=1e-4),
    "logit-unit": lambda d: Case(Logit(lam=0.1, levels=1.0), d, sample=unit_interval, step=1e-4),
    "planar": lambda d: Case(Chain((Planar(d), Planar(d), Planar(d))), d),
    "radial": lambda d: Case(Chain((Radial(d), Radial(d), Radial(d))), d),
    "scale": lambda d: Case(Scale(-0.3), d),
    "autoregressive": lambda d: Case(autoregressive(d), d),
    "autoregressive-additive": lambda d: Case(autoregressive(d, Additive(d), (5,)), d),
    "autoregressive-context": lambda d: Case(autoregressive(d, context=2), d, context=2),
    "autoregressive-direct": lambda d: Case(autoregressive(d, direct=True, context=1), d, 1),
    "autoregressive-linear": lambda d: Case(autoregressive(d, hidden=()), d),
    "autoregressive-deep": lambda d: Case(autoregressive(d, hidden=(6, 9, 4)), d),
    "autoregressive-spline": lambda d: Case(
        autoregressive(d, RationalQuadratic(d, bins=3, bound=2.0)), d, **SPLINE
    ),
    "autoregressive-relu": lambda d: Case(autoregressive(d, activation="relu"), d),
    "autoregressive-elu": lambda d: Case(autoregressive(d, activation="elu"), d),
    "autoregressive-random-order": lambda d: Case(
        autoregressive(d, random_order=True, random_degrees=True), d
    ),
    "autoregressive-agnostic": lambda d: Case(
        autoregressive(d, random_order=True, random_degrees=True, masks=4, direct=True, context=1),
        d,
        context=1,
    ),
    "inverse-autoregressive": lambda d: Case(Inverse(autoregressive(d, context=1)), d, context=1),
    "chain": lambda d: Case(Chain(realnvp_layers(d)), d),
    "chain-context": lambda d: Case(
        Chain((affine(d, half(d), context=1), additive(d, parity(d), context=1), BatchNorm(d))),
        d,
        context=1,
    ),
    "chain-nested": lambda d: Case(
        Chain((Scale(0.5), Chain(realnvp_layers(d)), Inverse(Chain(realnvp_layers(d))))), d
    ),
    "inverse-coupling": lambda d: Case(Inverse(affine(d, half(d), context=1)), d, context=1),
    "inverse-batch-norm": lambda d: Case(Inverse(BatchNorm(d)), d),
}
