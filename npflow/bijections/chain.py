"""Composition of bijections, and the three ways to find the caches again for the gradient.

Map       z = f_K(... f_2(f_1(x)))
Inverse   x = f_1^-1(... f_K^-1(z))
Log-det   sum_k log|det J_k|
Gradient  dx_{k-1} = backward_k(dx_k, dlog_det): every layer is given the same dlog_det
Source    NICE, arXiv:1410.8516, eq. 2; memory: RevNet, arXiv:1707.04585, section 3.2

Both directions of a layer make the same cache, so memory is a choice of the chain's:

    store      keeps every cache: the fastest
    recompute  keeps the layers' inputs and applies each layer again; the same bits as store
    invert     keeps the end alone (and, if asked, an anchor every k layers) and walks back with the
               opposite direction: the activations kept do not grow with the number of layers.
               Rounding errors of the walk are measured on one row at every layer and reported.

At a FactorOut layer a part of x leaves the walk; z holds these parts at its end, the last one to
leave first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npflow.backend import Array
from npflow.bijections.bijection import Bijection, accumulate
from npflow.bijections.factor_out import FactorOut
from npflow.errors import ConfigurationError, InversionDriftError, ShapeError
from npflow.params import Component, walk


class Memory(NamedTuple):
    """What a chain keeps for the gradient.

    schedule     : "store", "recompute" or "invert"
    anchor_every : with invert, also keep the input of every k-th layer (0: none)
    drift_bound  : with invert, the largest reconstruction error relative to 1 + |x| that is let
                   pass; None means 1e-2 in float32 and 1e-6 in float64
    """

    schedule: str = "store"
    anchor_every: int = 0
    drift_bound: float | None = None


STORE = Memory("store")
RECOMPUTE = Memory("recompute")  # for walks that need no gradient, too: it keeps no cache


def as_memory(memory: str | Memory) -> Memory:
    """A Memory from its schedule's name. Raises ConfigurationError if it is unknown."""
    if isinstance(memory, str):
        memory = Memory(memory)
    if memory.schedule not in ("store", "recompute", "invert"):
        raise ConfigurationError(
            f"unknown memory schedule {memory.schedule!r}; choose store, recompute or invert"
        )
    if memory.anchor_every < 0:
        raise ConfigurationError(f"anchor_every is {memory.anchor_every}; expected 0 or more")
    return memory


class Direction(NamedTuple):
    """The names of the methods that apply a layer, undo it, and pull gradients back."""

    apply: str
    undo: str
    pull_back: str


FORWARD = Direction("forward", "inverse", "backward")
TRAINING = Direction("training_forward", "inverse", "backward")
INVERSE = Direction("inverse", "forward", "inverse_backward")


class ChainCache(NamedTuple):
    """What a walk through the layers left. Of kept, by schedule: caches, inputs, or anchors."""

    direction: Direction
    memory: Memory
    kept: dict[int, Any]  # layer -> cache (store) or input (recompute; anchors of invert)
    end: Array | None  # invert: the output of the last layer applied
    probes: Array | None  # invert: (layers, ...), the first row of the input of each layer
    context: Array | None
    drift: Array | None  # invert: (layers,), filled by the walk back: max |found - x| / (1 + |x|)


@dataclass(eq=False)
class Chain(Bijection):
    """The bijections of `layers`, one after the other."""

    layers: tuple[Bijection | FactorOut, ...]

    def forward(self, x, context=None, memory=STORE):
        return self._walk(FORWARD, x, context, memory)

    def training_forward(self, x, context=None, memory=STORE):
        return self._walk(TRAINING, x, context, memory)

    def inverse(self, z, context=None, memory=STORE):
        return self._walk(INVERSE, z, context, memory)

    def backward(self, cache, dz, dlog_det):
        return self._walk_back(cache, dz, dlog_det, "backward")

    def inverse_backward(self, cache, dx, dlog_det):
        return self._walk_back(cache, dx, dlog_det, "inverse_backward")

    def initialize(self, x, context=None):
        return self._fold("initialize", x, context)

    def update_statistics(self, x, context=None):
        return self._fold("update_statistics", x, context)

    def _fold(self, method, x, context):
        factored = _Factored(self)
        for layer in self.layers:
            if isinstance(layer, FactorOut):
                x = factored.split(layer, x)
            else:
                x = getattr(layer, method)(x, context)
        return factored.append_to(x)

    def trace(self, x: Array, context: Array | None = None) -> Iterator[tuple[int, Array, Array]]:
        """The number, the output and the log-det of each layer that x meets in training."""
        factored = _Factored(self)
        for k, layer in enumerate(self.layers):
            if isinstance(layer, FactorOut):
                x = factored.split(layer, x)
            else:
                x, log_det, _ = layer.training_forward(x, context)
                yield k, x, log_det

    def check_memory(self, memory: Memory) -> None:
        """Raise ConfigurationError, naming the layer, if one cannot be walked back by inversion."""
        if memory.schedule == "invert":
            for k, layer in enumerate(self.layers):
                self._require_invertible(k, layer)

    def _walk(self, direction, x, context, memory):
        log_dets = [self.backend.xp.zeros(len(x), x.dtype)]
        probes = drift = None
        if memory.schedule == "invert":
            probes = self.backend.xp.empty((len(self.layers), x[0].size), x.dtype)
            drift = self.backend.xp.zeros(len(self.layers), x.dtype)
        cache = ChainCache(direction, memory, {}, None, probes, context, drift)
        factored = _Factored(self)
        layers = list(enumerate(self.layers))
        if direction is INVERSE:
            x = factored.cut_from(x)
            layers.reverse()
        for k, layer in layers:
            if isinstance(layer, FactorOut):
                x = factored.pass_by(layer, x, to_latents=direction is not INVERSE)
                continue
            if memory.schedule == "recompute":
                cache.kept[k] = x
            elif probes is not None:
                self._require_invertible(k, layer)
                probes[k, : x[0].size] = x[0].ravel()
                if memory.anchor_every and k % memory.anchor_every == 0:
                    cache.kept[k] = x
            x, log_det, layer_cache = getattr(layer, direction.apply)(x, context)
            log_dets.append(log_det)
            if memory.schedule == "store":
                cache.kept[k] = layer_cache
        if direction is not INVERSE:
            x = factored.append_to(x)
        log_det = self.backend.kernels.add_up(tuple(log_dets))
        return x, log_det, cache._replace(end=x) if memory.schedule == "invert" else cache

    def _walk_back(self, cache, dx, dlog_det, pull_back):
        if cache.memory.schedule == "invert" and cache.direction.pull_back != pull_back:
            raise ConfigurationError(
                f"{pull_back} cannot use what {cache.direction.apply} left with memory='invert': "
                "it holds the wrong end; use memory='recompute' or 'store'"
            )
        dcontext = None
        x = cache.end
        to_latents = pull_back == "inverse_backward"
        factored, dfactored = _Factored(self), _Factored(self)
        layers = list(enumerate(self.layers))
        if not to_latents:
            x, dx = factored.cut_from(x), dfactored.cut_from(dx)
            layers.reverse()
        for k, layer in layers:
            if isinstance(layer, FactorOut):
                dx = dfactored.pass_by(layer, dx, to_latents)
                if cache.memory.schedule == "invert":
                    x = factored.pass_by(layer, x, to_latents)
                continue
            if cache.memory.schedule == "store":
                layer_cache = cache.kept[k]
            elif cache.memory.schedule == "recompute":
                _, _, layer_cache = getattr(layer, cache.direction.apply)(
                    cache.kept[k], cache.context
                )
            else:
                x, _, layer_cache = getattr(layer, cache.direction.undo)(x, cache.context)
                row = x[0].ravel()
                self.backend.kernels.drift(row, cache.probes[k, : row.size], cache.drift[k : k + 1])
                x = cache.kept.get(k, x)
            dx, layer_dcontext = getattr(layer, pull_back)(layer_cache, dx, dlog_det)
            dcontext = accumulate(dcontext, layer_dcontext)
        return dfactored.append_to(dx) if to_latents else dx, dcontext

    def _require_invertible(self, k: int, layer: Component) -> None:
        for _, member in walk(layer):  # a chain may be nested
            reason = getattr(member, "invert_refusal", None)
            if reason is not None:
                raise ConfigurationError(
                    f"layer {k} ({type(member).__name__}) cannot be walked back by inversion: "
                    f"{reason}; use memory='recompute' or 'store'"
                )


class _Factored:
    """What of one array has left the walk at FactorOut layers, the last to leave at the end."""

    def __init__(self, chain: Chain):
        self.xp = chain.backend.xp
        self.sizes = [f.features for f in chain.layers if isinstance(f, FactorOut)]
        self.parts: list[Array] = []

    def split(self, layer: FactorOut, x: Array) -> Array:
        x, part = layer.split(x)
        self.parts.append(part)
        return x

    def pass_by(self, layer: FactorOut, x: Array, to_latents: bool) -> Array:
        """x behind this layer."""
        return self.split(layer, x) if to_latents else layer.join(x, self.parts.pop())

    def append_to(self, x: Array) -> Array:
        """z = [x | last part | ... | first part]."""
        if not self.parts:
            return x
        if x.ndim != 2:
            raise ShapeError(
                f"a chain with a FactorOut ends in shape {x.shape}; expected vectors (batch, "
                "features), to which what was factored out is appended: end it in a Reshape"
            )
        return self.xp.concatenate([x, *reversed(self.parts)], axis=1)

    def cut_from(self, z: Array) -> Array:
        """The x that append_to had."""
        if not self.sizes or z is None:
            return z
        start = z.shape[1] - sum(self.sizes)
        x, stop = z[:, :start], z.shape[1]
        for size in self.sizes:
            self.parts.append(z[:, stop - size : stop])
            stop -= size
        return self.xp.ascontiguousarray(x)


def check_drift(chain: Chain, cache: ChainCache) -> float:
    """The largest drift that an `invert` walk back saw (0 for the other schedules).

    Raises InversionDriftError, naming the first layer on the way back that passed the bound.
    """
    if cache.drift is None or cache.drift.size == 0:
        return 0.0
    bound = cache.memory.drift_bound
    if bound is None:
        bound = 1e-2 if chain.backend.dtype == np.float32 else 1e-6
    drift = chain.backend.to_numpy(cache.drift)
    if not drift.max() <= bound:
        layers = range(len(drift))
        walk_back = layers if cache.direction is INVERSE else reversed(layers)
        number = next(k for k in walk_back if not drift[k] <= bound)
        raise InversionDriftError(
            f"inverting layer {number} ({type(chain.layers[number]).__name__}) missed its input by "
            f"{drift[number]:.1e} (relative to 1 + |x|), more than {bound:.1e}; use "
            "Memory('invert', anchor_every=k) with a small k, or memory='recompute'"
        )
    return float(drift.max())
