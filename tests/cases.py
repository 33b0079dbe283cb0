"""Every layer the generic tests run over. A new layer is one line in CASES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from npflow import get_backend, testing
from npflow.bijections import (
    BatchNorm,
    Bijection,
    Chain,
    Coupling,
    Diagonal,
    Inverse,
    Logit,
    MaskedAutoregressive,
    Permutation,
    Planar,
    Radial,
    Scale,
    half,
    parity,
    reverse,
    shuffle,
    swap_halves,
)
from npflow.elementwise import Additive, Affine, RationalQuadratic
from npflow.errors import BackendError
from npflow.networks import MADE, MLP
from npflow.params import walk


def _runs(backend: str) -> bool:
    try:
        get_backend(backend)
    except BackendError:
        return False
    return True


BACKENDS = [
    "reference",
    "numpy",
    pytest.param(
        "cupy",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not _runs("cupy"), reason="needs CUDA")],
    ),
]


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
            z, _, _ = self.layer.forward(x, context)
            smooth = all(_off_kinks(m, a, context) for m, a in self._conditioner_inputs(x, z))
            if smooth and all(_off_knots(*spline) for spline in self._splines(x, context)):
                return x, context
        hypothesis.reject()

    def _conditioner_inputs(self, x, z):
        for _, member in walk(self.layer):
            if isinstance(member, Coupling):
                network, inputs = member.conditioner, x[:, list(member.kept)]
            elif isinstance(member, MaskedAutoregressive):
                network, inputs = member.network, x
            else:
                continue
            if network.activation != "tanh":
                assert member is self.layer, "only single layers are kept off their kinks"
                yield network, inputs

    def _splines(self, x, context):
        layer = self.layer
        if not isinstance(getattr(layer, "map", None), RationalQuadratic):
            return
        if isinstance(layer, Coupling):
            params, _ = layer.conditioner.forward(x[:, list(layer.kept)], context)
            x = np.delete(layer.backend.to_numpy(x), layer.kept, axis=1)
        else:
            params, _ = layer.network.forward(x, context)
            x = layer.backend.to_numpy(x)
        yield layer.map, x, layer.backend.to_numpy(params)


def _off_kinks(network: MLP | MADE, x, context) -> bool:
    _, cache = network.forward(x, context)
    layers = zip(cache.activations[:-1], network.weights[:-1], network.biases[:-1], strict=True)
    return all(bool((abs(h @ w.value + b.value) > 0.01).all()) for h, w, b in layers)


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


# Narrow bins make steep slopes that bend within a short way: differences need small steps.
SPLINE: dict[str, Any] = {"step": 1e-4, "scale": 0.25}

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
