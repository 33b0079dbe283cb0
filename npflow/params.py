"""Parameters: every layer declares what it needs, one store holds them all in flat buffers.

A model is a tree of components (bijections, networks, base distributions). Each declares
`Parameter`s (trained) and `State`s (stored but not trained). `ParamStore` allocates one flat array
of values and one of gradients on the backend, and hands each declaration its views. So Adam,
zeroing, the norm for clipping, averaging and saving are each one operation on one array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npflow import random
from npflow.backend import Array, Backend
from npflow.errors import CheckpointError, ConfigurationError

Uniform = Callable[[tuple[int, ...]], np.ndarray]  # shape -> float64 numbers in [0, 1)
Initializer = Callable[[Uniform, tuple[int, ...]], np.ndarray]


def constant(value: float) -> Initializer:
    """Every element is value."""
    return lambda uniform, shape: np.full(shape, value)


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for a linear layer with fan_in inputs."""
    return lambda uniform, shape: (2 * uniform(shape) - 1) / math.sqrt(fan_in)


class State:
    """A stored array that training does not change; `value` is a view into the store."""

    def __init__(self, shape: tuple[int, ...], initial: Initializer):
        self.shape = shape
        self.initial = initial
        self.value: Array = None


class Parameter(State):
    """A trained array; `value` and `grad`, which gradients are added to, are views.

    mask : what of it is there, on the host; the rest of the values and gradients is zero and stays
           so. None: all of it
    """

    def __init__(
        self, shape: tuple[int, ...], initial: Initializer, mask: np.ndarray | None = None
    ):
        super().__init__(shape, initial)
        self.mask = mask
        self.grad: Array = None


class Component:
    """A node of a model. Subclasses are dataclasses whose fields are their whole configuration,
    so that a model can be rebuilt from JSON; parameters are declared in `__post_init__`.
    """

    backend: Backend
    registry: ClassVar[dict[str, type[Component]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Component.registry[cls.__name__] = cls

    def attached(self) -> None:
        """Called once the backend is known: the place to put constants on the device."""

    def members(self) -> Iterator[tuple[str, Any]]:
        """The parameters, states and components held by this one, in order of declaration."""
        for name, value in vars(self).items():
            if isinstance(value, State | Component):
                yield name, value
            elif isinstance(value, tuple | list):
                for i, item in enumerate(value):
                    if isinstance(item, State | Component):
                        yield f"{name}.{i}", item


def walk(component: Component, prefix: str = "") -> Iterator[tuple[str, State | Component]]:
    """component and all below it, depth first, with their dotted names."""
    yield prefix, component
    for name, member in component.members():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(member, Component):
            yield from walk(member, path)
        else:
            yield path, member


def to_config(value: Any) -> Any:
    """value (a component, a plain value, or a sequence of these) as JSON can hold it."""
    if isinstance(value, Component):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return {"type": type(value).__name__} | {
            f.name: to_config(getattr(value, f.name)) for f in fields if f.init
        }
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigurationError(
        f"a configuration holds {value!r} of type {type(value).__name__}; expected components, "
        "numbers, strings or tuples of these"
    )


def from_config(config: Any) -> Any:
    """The inverse of to_config. Only registered component classes are built; no code is run."""
    if isinstance(config, list):
        return tuple(from_config(item) for item in config)
    if not isinstance(config, dict):
        return config
    kind = config.get("type")
    if kind not in Component.registry:
        raise CheckpointError(
            f"the file names a component {kind!r} that is not known; if it is one of your own "
            "classes, import it before loading"
        )
    arguments = {name: from_config(value) for name, value in config.items() if name != "type"}
    try:
        return Component.registry[kind](**arguments)
    except TypeError as error:
        raise CheckpointError(f"the file's configuration of {kind} does not fit: {error}") from None


class Slot(NamedTuple):
    """Where one array lies in its flat buffer."""

    start: int
    stop: int
    shape: tuple[int, ...]


class ParamStore:
    """The parameters of a component tree in flat arrays on one backend.

    values, grads : (P,) every trained parameter and its gradient, in order of declaration
    state         : (S,) arrays that are stored but not trained
    table         : name -> Slot in values and grads
    masks         : name -> which entries are not zero always, for parameters that have a mask
    state_table   : name -> Slot in state

    Initial values depend on seed and the order of declaration only, not on the backend.
    """

    def __init__(self, component: Component, backend: Backend, seed: int = 0):
        self.backend = backend
        trained: dict[str, Parameter] = {}
        stored: dict[str, State] = {}
        seen: set[int] = set()
        for name, member in walk(component):
            if id(member) in seen:  # a component used twice shares its parameters
                continue
            seen.add(id(member))
            if isinstance(member, Component):
                member.backend = backend
            elif isinstance(member, Parameter):
                trained[name] = member
            else:
                stored[name] = member
        self.table = _slots(trained)
        self.masks = {name: p.mask for name, p in trained.items() if p.mask is not None}
        self.state_table = _slots(stored)
        self.values = self._initial(trained, seed)
        self.grads = backend.xp.zeros_like(self.values)
        self.state = self._initial(stored, seed)
        for name, parameter in trained.items():
            parameter.value = self.value(name)
            parameter.grad = self.grad(name)
        for name, state in stored.items():
            state.value = self.value(name)
        for _, member in walk(component):
            if isinstance(member, Component):
                member.attached()

    @property
    def count(self) -> int:
        """The number of trained parameters."""
        return self.values.size

    def value(self, name: str) -> Array:
        """The view of one parameter's or state's values."""
        if name in self.table:
            return _view(self.values, self.table[name])
        return _view(self.state, self.state_table[name])

    def grad(self, name: str) -> Array:
        """The view of one parameter's gradient."""
        return _view(self.grads, self.table[name])

    def zero_grads(self) -> None:
        """Set all gradients to zero."""
        self.grads.view("uint8").fill(0)  # as bytes: NumPy then calls memset, twice as fast

    def to_numpy(self) -> dict[str, np.ndarray]:
        """A copy of every array by name, on the host."""
        values, state = (self.backend.to_numpy(buffer) for buffer in (self.values, self.state))
        arrays = {name: _view(values, slot).copy() for name, slot in self.table.items()}
        return arrays | {name: _view(state, slot).copy() for name, slot in self.state_table.items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Copy arrays by name into the buffers; names and shapes must fit exactly.

        Raises CheckpointError otherwise, before anything is changed.
        """
        expected = self.table | self.state_table
        if arrays.keys() != expected.keys():
            missing = sorted(expected.keys() - arrays.keys())
            unknown = sorted(arrays.keys() - expected.keys())
            raise CheckpointError(
                f"the arrays do not fit the model: missing {missing[:3]}, unknown {unknown[:3]}"
            )
        for name, slot in expected.items():
            if arrays[name].shape != slot.shape:
                raise CheckpointError(
                    f"{name} has shape {arrays[name].shape} in the file, {slot.shape} in the model"
                )
        for name, mask in self.masks.items():
            if arrays[name][~mask].any():
                raise CheckpointError(f"{name} has numbers in the file where the model has a mask")
        for buffer, table in ((self.values, self.table), (self.state, self.state_table)):
            if table:
                flat = np.concatenate([arrays[name].ravel() for name in table])
                buffer[...] = self.backend.array(flat)

    def _initial(self, members: dict[str, Any], seed: int) -> Array:
        host = [np.zeros(0)]
        for i, (name, member) in enumerate(members.items()):

            def uniform(shape: tuple[int, ...], i: int = i) -> np.ndarray:
                stream = random.Stream.INIT
                draw = random.uniform(self.backend, shape, seed, stream, i, np.float64)
                return self.backend.to_numpy(draw)

            values = np.asarray(member.initial(uniform, member.shape))
            if values.shape != member.shape:
                raise ConfigurationError(
                    f"the initial values of {name} have shape {values.shape}, "
                    f"expected {member.shape}"
                )
            if name in self.masks:
                values = values * self.masks[name]
            host.append(values.ravel())
        return self.backend.xp.asarray(np.concatenate(host), dtype=self.backend.dtype)


def _slots(members: dict[str, Any]) -> dict[str, Slot]:
    slots, start = {}, 0
    for name, member in members.items():
        stop = start + math.prod(member.shape)
        slots[name] = Slot(start, stop, member.shape)
        start = stop
    return slots


def _view(buffer: Array, slot: Slot) -> Array:
    return buffer[slot.start : slot.stop].reshape(slot.shape)
