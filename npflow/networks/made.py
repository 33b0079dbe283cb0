"""MADE, the masked autoregressive network: params of feature i depend on x_0 .. x_{i-1} alone.

Map       h_0 = [context | x];  h_l = act(h_{l-1} (W_l ⊙ M_l) + b_l);  the last layer is linear
          params = h_L (W ⊙ M) + b  [+ h_0 (W_direct ⊙ M_direct)]
Masks     every unit has a degree m: it sees the features 0 .. m. In M_l a unit is linked to units
          of a degree not above its own; in the last M output i is linked to degrees m < i,
          strictly (with m <= i it would see its own input).
Gradient  as of the MLP, masked: dW_l += (h_{l-1}^T da) ⊙ M_l
Source    MADE, arXiv:1502.03509, eq. 8-13 (masks), section 4 (order- and connectivity-agnostic)

Hidden units lie sorted by degree, so every mask is a staircase and its zero blocks are skipped:
about half the arithmetic of the dense network. And an autoregressive map can be inverted in one
pass (kernels/reference/autoregressive.py), since each unit is final once its degree is reached.

Cost: n_in n_out flops a layer and sample forward, twice that back. Cache: every layer's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from npflow import random
from npflow.backend import Array, get_backend
from npflow.errors import ConfigurationError, ShapeError
from npflow.networks.mlp import ACTIVATIONS
from npflow.params import Component, Parameter, constant, uniform_fan_in


class Degrees(NamedTuple):
    """One choice of the order of the features and of the degrees of the hidden units."""

    order: np.ndarray  # (D,) the feature at each place of the autoregression
    hidden: tuple[np.ndarray, ...]  # the degrees of each hidden layer's units


class Masks(NamedTuple):
    """What degrees mean for the weights, on the device. "Sorted" is by place or by degree."""

    order: Array | None  # (D,) the feature at each place; None: 0 .. D-1
    places: Array | None  # (D,) the place of each feature
    units: tuple[Array, ...] | None  # stored index of each sorted row or column; None: as stored
    undo: tuple[Array, ...]  # sorted index of each stored one
    reaches: tuple[Array, ...]  # of each layer's columns, see kernels/reference/masked_linear.py
    ends: tuple[Array, ...]  # (D,) for each hidden layer: its units that place i may see


class Arrays(NamedTuple):
    """The parameters, sorted and masked: views where they are stored so."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    direct: Array  # (0, P D) if there are no direct links


class MADECache(NamedTuple):
    activations: tuple[Array, ...]  # the sorted input (B, C + D) and each hidden layer's output
    arrays: Arrays
    masks: Masks


@dataclass(eq=False)
class MADE(Component):
    """x (B, features) -> params (B, parameters_per_feature * features), part after part.

    hidden         : widths of the hidden layers
    activation     : as for the MLP
    context        : the number of context features, which every output sees
    direct         : whether the input is linked to the output directly, too
    random_order   : draw the order of the features; else it is 0 .. D-1
    random_degrees : draw the degrees; else they are spread evenly
    masks          : how many draws training cycles through, one a step; 0: a new one every step.
                     More than one makes the network agnostic to the order (or connectivity): it is
                     one of many that share weights, and `use_masks` chooses which
    mask_seed      : of the draws
    zero_last      : start the last layer at zero, so that a flow starts as the identity

    Raises ConfigurationError if these do not fit together.
    """

    features: int
    hidden: tuple[int, ...]
    parameters_per_feature: int
    activation: str = "relu"
    context: int = 0
    direct: bool = False
    random_order: bool = False
    random_degrees: bool = False
    masks: int = 1
    mask_seed: int = 0
    zero_last: bool = True

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        outputs = self.features * self.parameters_per_feature
        widths = (self.context + self.features, *self.hidden, outputs)
        if min(self.features, *widths) < 1 or self.context < 0:
            raise ConfigurationError(
                f"features is {self.features}, context {self.context} and layer widths are "
                f"{widths}; expected 1 or more each, and 0 or more context features"
            )
        if self.masks < 0 or (self.masks != 1 and not (self.random_order or self.random_degrees)):
            raise ConfigurationError(
                f"masks is {self.masks}; expected 0 or more, and 1 unless random_order or "
                "random_degrees makes them differ"
            )
        self._activations = (self.activation,) * len(self.hidden) + ("identity",)
        reaches = self._reaches(self._degrees(0)) if self.masks == 1 else None
        self.weights, self.biases = [], []
        for layer, (n_in, n_out) in enumerate(pairwise(widths)):
            last = layer == len(self.hidden)
            initial = constant(0.0) if last and self.zero_last else uniform_fan_in(n_in)
            mask = None if reaches is None else _staircase(reaches[layer], n_in, n_out)
            self.weights.append(Parameter((n_in, n_out), initial, mask))
            self.biases.append(Parameter((n_out,), initial))
        self.direct_weights = []
        if self.direct:
            shape = (widths[0], outputs)
            mask = None if reaches is None else _staircase(self._direct_reach(), *shape)
            self.direct_weights.append(Parameter(shape, constant(0.0), mask))

    def attached(self):
        xp = self.backend.xp
        self._no_direct = xp.zeros((0, self.weights[-1].shape[1]), self.backend.dtype)
        self._no_bias = xp.zeros(self.weights[-1].shape[1], self.backend.dtype)
        self._direct_steps = xp.asarray(self._direct_reach())
        self.use_masks(0, force=True)

    def use_masks(self, number: int, force: bool = False) -> None:
        """Take draw `number` (modulo `masks`) of the order and degrees from now on."""
        if self.masks != 1 or force:
            self._masks = self._draw(number % self.masks if self.masks else number)

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, MADECache]:
        """params (B, parameters_per_feature * features) and the cache."""
        masks = self._masks
        arrays = self._arrays(masks)
        h = [self._join(x, context, masks)]
        for layer in range(len(self.hidden)):
            h.append(
                self.backend.kernels.masked_linear_forward(
                    h[-1], arrays.weights[layer], arrays.biases[layer], masks.reaches[layer],
                    self.activation,
                )
            )  # fmt: skip
        cache = MADECache(tuple(h), arrays, masks)
        return self._by_feature(self._outputs(cache), masks), cache

    def backward(self, cache: MADECache, dparams: Array) -> tuple[Array, Array | None]:
        """dx and dcontext; dparams may be overwritten."""
        masked_linear_backward = self.backend.kernels.masked_linear_backward
        masks = cache.masks
        weights, _, direct = cache.arrays
        dy = self._by_place(dparams, masks)
        dinputs = 0
        if self.direct:
            dweight, add = self._gradient(self.direct_weights[0], masks, 0, -1)
            dinputs = masked_linear_backward(
                dy.copy(), cache.activations[0], dy, direct, self._direct_steps, "identity",
                dweight, self.backend.xp.zeros_like(self._no_bias),
            )  # fmt: skip
            add()
        h = (*cache.activations, dy)  # the last layer is linear: its output is not needed
        for layer in reversed(range(len(weights))):
            dweight, add_weight = self._gradient(self.weights[layer], masks, layer, layer + 1)
            dbias, add_bias = self._gradient(self.biases[layer], masks, layer + 1)
            dy = masked_linear_backward(
                dy, h[layer], h[layer + 1], weights[layer], masks.reaches[layer],
                self._activations[layer], dweight, dbias,
            )  # fmt: skip
            add_weight()
            add_bias()
        return self._part(dy + dinputs if self.direct else dy, masks)

    def inverse(
        self, z: Array, context: Array | None, map: str, constants: Array
    ) -> tuple[Array, Array, MADECache]:
        """The x whose params map z to it feature by feature, these params, and the cache.

        z (B, Q features); map and constants as in kernels/reference/autoregressive.py.
        """
        masks = self._masks
        if self.context:
            context = self._require(context)
        else:
            context = self.backend.xp.zeros((len(z), 0), z.dtype)
        arrays = self._arrays(masks)
        x, hidden, params = self.backend.kernels.autoregressive_inverse(
            self._by_place(z, masks), context, *arrays, masks.reaches, masks.ends,
            self.activation, map, self._by_place(constants, masks),
        )  # fmt: skip
        inputs = self.backend.xp.concatenate([context, x], axis=1) if self.context else x
        cache = MADECache((inputs, *hidden), arrays, masks)
        return self._by_feature(x, masks), self._by_feature(params, masks), cache

    def inverse_backward(
        self, cache: MADECache, dx: Array, dlog_det: Array, map: str, constants: Array
    ) -> Array:
        """The whole gradient that reaches x through `inverse`: dx, and what features of later
        places add to it. The map's own inverse_backward and `backward` give the rest.
        """
        masks = cache.masks
        inputs, *hidden = cache.activations
        weights, _, direct = cache.arrays
        total = self.backend.kernels.autoregressive_inverse_backward(
            self._by_place(dx, masks), dlog_det, inputs, tuple(hidden), self._outputs(cache),
            weights, direct, masks.reaches, masks.ends, self.activation, map,
            self._by_place(constants, masks),
        )  # fmt: skip
        return self._by_feature(total, masks)

    def _outputs(self, cache: MADECache) -> Array:
        """The sorted params from the activations."""
        forward = self.backend.kernels.masked_linear_forward
        inputs, last = cache.activations[0], cache.activations[-1]
        weights, biases, direct = cache.arrays
        params = forward(last, weights[-1], biases[-1], cache.masks.reaches[-1], "identity")
        if self.direct:
            params += forward(inputs, direct, self._no_bias, self._direct_steps, "identity")
        return params

    # Degrees and masks

    def _degrees(self, number: int) -> Degrees:
        """Draw `number` of the order and of the hidden degrees, the latter as they are stored."""
        draw = number * (len(self.hidden) + 1)
        order = np.arange(self.features)
        if self.random_order:
            order = random.permutation(self.features, self.mask_seed, random.Stream.MASKS, draw)
        # Degree -1 sees the context alone; without one it would see nothing.
        highest = self.features - 2
        lowest = -1 if self.context else min(0, highest)
        hidden = []
        for layer, width in enumerate(self.hidden):
            at = np.arange(width) / width
            if self.random_degrees:
                seed, step = self.mask_seed, draw + 1 + layer
                host = get_backend("reference")
                at = random.uniform(host, (width,), seed, random.Stream.MASKS, step, np.float64)
            degrees = lowest + np.floor(at * (highest + 1 - lowest)).astype(np.int64)
            if self.masks == 1:
                degrees.sort()
            hidden.append(degrees)
            lowest = int(degrees.min())  # a unit of a lower degree would see nothing
        return Degrees(order, tuple(hidden))

    def _reaches(self, degrees: Degrees) -> list[np.ndarray]:
        """For each layer, how many of the sorted inputs each sorted column sees."""
        hidden = [np.sort(d) for d in degrees.hidden]
        if not hidden:
            return [self._direct_reach()]
        between = [np.searchsorted(a, b, "right") for a, b in pairwise(hidden)]
        last = np.searchsorted(hidden[-1], np.arange(self.features), "left")  # strictly below
        return [self.context + hidden[0] + 1, *between, last]

    def _direct_reach(self) -> np.ndarray:
        return self.context + np.arange(self.features)

    def _draw(self, number: int) -> Masks:
        on_device = self.backend.xp.asarray
        degrees = self._degrees(number)
        places = np.arange(self.features)
        hidden = [np.sort(d) for d in degrees.hidden]
        ends = tuple(on_device(np.searchsorted(d, places, "left")) for d in hidden)
        reaches = tuple(on_device(reach) for reach in self._reaches(degrees))
        order = units = where = None
        undo: tuple[Array, ...] = ()
        if self.random_order:
            order, where = on_device(degrees.order), on_device(np.argsort(degrees.order))
        if self.masks != 1:
            parts = np.arange(self.parameters_per_feature)[:, None] * self.features
            rows = np.concatenate([np.arange(self.context), self.context + degrees.order])
            columns = (parts + degrees.order).ravel()
            sorts = [np.argsort(d, kind="stable") for d in degrees.hidden]
            indices = (rows, *sorts, columns)
            units = tuple(on_device(index) for index in indices)
            undo = tuple(on_device(np.argsort(index)) for index in indices)
        return Masks(order, where, units, undo, reaches, ends)

    def _arrays(self, masks: Masks) -> Arrays:
        direct = self.direct_weights[0].value if self.direct else self._no_direct
        weights = tuple(weight.value for weight in self.weights)
        biases = tuple(bias.value for bias in self.biases)
        if masks.units is None:
            return Arrays(weights, biases, direct)
        units, xp = masks.units, self.backend.xp

        def sort(weight: Array, rows: Array, columns: Array, reach: Array) -> Array:
            n_in, n_out = weight.shape
            return self._take(weight, rows, columns) * _staircase(reach, n_in, n_out, xp)

        weights = tuple(
            sort(weight, *pair, reach)
            for weight, pair, reach in zip(weights, pairwise(units), masks.reaches, strict=True)
        )
        biases = tuple(bias[index] for bias, index in zip(biases, units[1:], strict=True))
        if self.direct:
            direct = sort(direct, units[0], units[-1], self._direct_steps)
        return Arrays(weights, biases, direct)

    def _take(self, a: Array, *indices: Array) -> Array:
        """a[indices[0]][:, indices[1]]: in turn, which is faster than both at once."""
        for axis, index in enumerate(indices):
            a = self.backend.xp.take(a, index, axis=axis)
        return a

    def _gradient(
        self, parameter: Parameter, masks: Masks, *axes: int
    ) -> tuple[Array, Callable[[], None]]:
        """An array to add the sorted gradient to, and what to call when that is done."""
        if masks.units is None:
            return parameter.grad, lambda: None
        found = self.backend.xp.zeros_like(parameter.grad)

        def add() -> None:
            parameter.grad += self._take(found, *(masks.undo[axis] for axis in axes))

        return found, add

    # Order of the features

    def _by_place(self, a: Array, masks: Masks) -> Array:
        """(B, parts D) with each part's features in the order of the autoregression."""
        return a if masks.order is None else self._reorder(a, masks.order)

    def _by_feature(self, a: Array, masks: Masks) -> Array:
        """The opposite of _by_place."""
        return a if masks.places is None else self._reorder(a, masks.places)

    def _reorder(self, a: Array, index: Array) -> Array:
        parts = a.reshape(len(a), a.shape[1] // self.features, self.features)
        return self.backend.xp.take(parts, index, axis=2).reshape(a.shape)

    def _join(self, x: Array, context: Array | None, masks: Masks) -> Array:
        x = self._by_place(x, masks)
        if not self.context:
            return x
        return self.backend.xp.concatenate([self._require(context), x], axis=1)

    def _part(self, dinputs: Array, masks: Masks) -> tuple[Array, Array | None]:
        """dx by feature, and dcontext."""
        if not self.context:
            return self._by_feature(dinputs, masks), None
        contiguous = self.backend.xp.ascontiguousarray
        dx = self._by_feature(contiguous(dinputs[:, self.context :]), masks)
        return dx, contiguous(dinputs[:, : self.context])

    def _require(self, context: Array | None) -> Array:
        if context is None:
            raise ShapeError(f"this flow needs a context of {self.context} features a row")
        return context


def _staircase(reach: Array, n_in: int, n_out: int, xp: Any = np) -> Array:
    """The mask (n_in, n_out): column j of each part of len(reach) sees the rows before reach[j]."""
    return xp.arange(n_in)[:, None] < xp.tile(reach, n_out // len(reach))
