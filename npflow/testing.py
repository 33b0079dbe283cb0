"""Checks of a layer's inverse, log-determinant and gradients against their definitions.

    layer = MyLayer(features=5)
    testing.prepare(layer)                                   # random parameters in float64
    x = np.random.default_rng(0).normal(size=(3, 5))
    testing.check_inverse(layer, x)
    testing.check_log_det(layer, x)
    testing.check_gradients(layer, x)

Each raises CheckError naming the layer, the direction, the tensor, the index and both values. All
three are needed: a round trip cannot see a term that is missing from both directions, and a
log-det that is constant in x has a gradient of zero whatever it is. npflow's own layers pass the
same checks, and a planted error in any of them fails one (tests/test_mutations.py).

Derivatives are found by central differences along a direction v,

    D(h) = (L(t + h v) - L(t - h v)) / (2 h) = dL/dv + O(h^2)
    (4 D(h) - D(2 h)) / 3                    = dL/dv + O(h^4)            the five-point formula

so the functions must be smooth where they are checked: keep ReLUs away from their kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from npflow.backend import Array, Backend, get_backend
from npflow.bijections.bijection import Bijection
from npflow.bijections.chain import STORE, Memory
from npflow.errors import CheckError, DtypeError
from npflow.flow import Flow
from npflow.params import Component, Parameter, ParamStore, walk

STEP = 4e-4  # of differences: balances h^4 against eps / h in float64
ELEMENTWISE = 64  # tensors up to this size are checked element by element, larger ones
RANDOM_DIRECTIONS = 4  # along so many random directions
SMALLEST_SCALE = 1e-4  # gradients below this are compared absolutely: differences have noise
LOWEST_ORDER = 1.9  # of the observed convergence of D(h), 2 in theory

_PULL_BACK = {
    "forward": "backward",
    "training_forward": "backward",
    "inverse": "inverse_backward",
}


class GradientReport(NamedTuple):
    """How well the gradient of one tensor agreed with differences."""

    direction: str  # "forward", "training_forward" or "inverse"
    tensor: str  # "x", "z", "context" or a parameter's name
    cotangents: str  # which of the two were not zero
    error: float  # largest |by hand - by differences| / largest |by differences|
    order: float | None  # log2 of error(2 h) / error(h); None if D(h) is exact up to rounding


def prepare(
    component: Component,
    backend: str | Backend = "reference",
    dtype: Any = "float64",
    seed: int = 0,
    scale: float = 0.5,
) -> ParamStore:
    """Allocate a component on its own and randomize its parameters."""
    store = ParamStore(component, get_backend(backend, dtype), seed)
    randomize(store, seed, scale)
    return store


def randomize(store: ParamStore, seed: int = 0, scale: float = 0.5) -> None:
    """Add N(0, scale^2) to every parameter, and N(0, scale^2 / n_in) to weights of n_in inputs.

    A new flow is the identity, and zeros hide errors. The numbers are the same on every backend.
    """
    rng = np.random.default_rng(seed)
    for name, slot in store.table.items():
        noise = rng.normal(size=slot.shape) * (scale / math.sqrt(math.prod(slot.shape[:-1])))
        noise *= store.masks.get(name, 1)
        value = store.value(name)
        value += store.backend.array(noise)


def jacobian(function: Callable[[Array], Array], x: Array, step: float = STEP) -> np.ndarray:
    """dy_i/dx_j (B, D_out, D_in) of a row-independent map by the five-point formula.

    x : (B, ...), flattened to (B, D_in) in the answer. Column j of all rows is moved at once.
    """
    rows = x.reshape(len(x), -1)
    columns = []
    for j in range(rows.shape[1]):

        def at(h: float, j: int = j) -> np.ndarray:
            moved = rows.copy()
            moved[:, j] += h
            return _host(function(moved.reshape(x.shape))).reshape(len(x), -1)

        columns.append(_five_point(_central(at, step), _central(at, 2 * step)))
    return np.stack(columns, axis=2)


def check_inverse(
    layer: Bijection, x: Array, context: Array | None = None, *, tolerance: float | None = None
) -> float:
    """inverse(forward(x)) = x, forward(inverse(z)) = z, opposite log-dets and equal caches.

    tolerance : relative to 1 + |value|; 1e-12 in float64 and 1e-5 in float32 unless given

    Returns the largest error. Raises CheckError if one is larger, or if x was written to.
    """
    if tolerance is None:
        tolerance = 1e-5 if layer.backend.dtype == np.float32 else 1e-12
    before = x.copy()
    z, log_det, cache = layer.forward(x, context)
    found, inverse_log_det, inverse_cache = layer.inverse(z, context)
    z_found, _, _ = layer.forward(found, context)
    kind = type(layer).__name__
    _compare(f"{kind} forward changed its input: x", x, before, 0)
    pairs = [
        ("x = inverse(forward(x))", found, x),
        ("z = forward(inverse(z))", z_found, z),
        ("log_det of inverse, minus that of forward", inverse_log_det, -log_det),
    ]
    leaves, inverse_leaves = dict(_leaves("cache", cache)), dict(_leaves("cache", inverse_cache))
    if leaves.keys() != inverse_leaves.keys():
        raise CheckError(
            f"{kind}: forward makes a cache of {sorted(leaves)}, inverse one of "
            f"{sorted(inverse_leaves)}; both directions must make the same"
        )
    pairs += [(f"inverse's {name}", inverse_leaves[name], leaves[name]) for name in leaves]
    return max(
        _compare(f"{kind} {what}", found, expected, tolerance) for what, found, expected in pairs
    )


def check_log_det(
    layer: Bijection,
    x: Array,
    context: Array | None = None,
    *,
    tolerance: float = 1e-10,
    step: float = STEP,
) -> float:
    """log_det = log|det J| in both directions, with J found in two ways.

    J by differences, and J assembled from the hand-written gradient: its row i is the dx of
    dz = e_i, dlog_det = 0. For maps whose rows do not interact; float64.

    tolerance : relative to 1 + |log_det|
    step      : of differences, in units of the input's typical size if that is above 1

    Returns the largest error. Raises CheckError if it is larger, DtypeError unless in float64.
    """
    _require_float64(layer.backend)
    errors = []
    for direction in ("forward", "inverse"):
        apply, pull_back = getattr(layer, direction), getattr(layer, _PULL_BACK[direction])
        point = x if direction == "forward" else layer.forward(x, context)[0]
        out, log_det, cache = apply(point, context)
        rows = []
        with _grads_kept(layer):
            for i in range(out[0].size):
                cotangent = layer.backend.xp.zeros_like(out)
                cotangent.reshape(len(out), -1)[:, i] = 1
                dpoint, _ = pull_back(cache, cotangent, layer.backend.xp.zeros_like(log_det))
                rows.append(_host(dpoint).reshape(len(out), -1))
        by_hand = np.stack(rows, axis=1)

        def output(p: Array, apply: Callable = apply) -> Array:
            return apply(p, context)[0]

        by_differences = jacobian(output, point, step * _typical_size(point))
        for how, matrix in (("differences", by_differences), (_PULL_BACK[direction], by_hand)):
            what = f"{type(layer).__name__} {direction}: log_det against log|det J| by {how}"
            errors.append(_compare(what, log_det, np.linalg.slogdet(matrix)[1], tolerance))
    return max(errors)


def check_gradients(
    layer: Bijection,
    x: Array,
    context: Array | None = None,
    *,
    seed: int = 0,
    directions: tuple[str, ...] = ("forward", "inverse"),
    tolerance: float = 1e-7,
    step: float = STEP,
) -> tuple[GradientReport, ...]:
    """The gradients of L = <dz, z> + <dlog_det, log_det> against differences, in float64.

    dz and dlog_det are random; they are tried together and each alone, since an error in one can
    hide behind the other. Checked are the input, the context and every parameter: tensors of up to
    64 elements each element, larger ones along 4 random directions. Gradients of parameters must be
    added to what is there.

    directions : of "forward", "training_forward" and "inverse" (then L is of x and its log_det)
    tolerance  : of |by hand - by differences| relative to the tensor's largest |by differences|
    step       : h, in units of the tensor's typical size if that is above 1

    Also required is that D(h) approaches the gradient with an observed order of 1.9 or more, unless
    it is exact up to rounding (maps that are linear or quadratic in the tensor). A gradient that is
    wrong by a constant has order 0.

    Raises CheckError if anything is off, DtypeError unless the layer is in float64.
    """
    _require_float64(layer.backend)
    return tuple(
        report
        for direction in directions
        for report in _check_direction(layer, x, context, seed, direction, tolerance, step)
    )


def check_flow_gradients(
    flow: Flow,
    x: Array,
    context: Array | None = None,
    *,
    seed: int = 0,
    memory: str | Memory = STORE,
    tolerance: float = 1e-8,
) -> GradientReport:
    """The gradient of the training loss along one random direction over all parameters, in float64.

    Raises CheckError and DtypeError as check_gradients does.
    """
    _require_float64(flow.backend)
    flow.nll_and_grad(x, context, memory)
    values, gradient = flow.params.values, _host(flow.params.grads).copy()
    v = np.random.default_rng(seed).normal(size=(1, gradient.size))
    for name, mask in flow.params.masks.items():
        slot = flow.params.table[name]
        v[0, slot.start : slot.stop] *= mask.ravel()

    def loss() -> np.ndarray:
        z, log_det, _ = flow.bijection.training_forward(x, context)
        return np.array([-_host(flow.base.log_prob(z, context) + log_det).mean()])

    # A step of STEP in all parameters together, not in each.
    v /= np.linalg.norm(v)
    fine, coarse = _differences(flow.backend, loss, values, v, STEP)
    rounding = float(abs(loss()[0])) * np.finfo(np.float64).eps / STEP
    found = (v @ gradient)[:, None]
    error, order = _agreement(found, fine, coarse, rounding)
    report = GradientReport("training_forward", "all parameters", "loss", error[0], order[0])
    _require_agreement("Flow", report, tolerance, found, _five_point(fine, coarse), "direction 0")
    return report


def _check_direction(
    layer: Bijection,
    x: Array,
    context: Array | None,
    seed: int,
    direction: str,
    tolerance: float,
    step: float,
) -> Iterator[GradientReport]:
    backend, rng = layer.backend, np.random.default_rng(seed)
    apply, pull_back = getattr(layer, direction), getattr(layer, _PULL_BACK[direction])
    point_name, out_name = ("z", "x") if direction == "inverse" else ("x", "z")
    point = (layer.forward(x, context)[0] if direction == "inverse" else x).copy()
    tensors = {point_name: point}
    if context is not None:
        tensors["context"] = context = context.copy()
    tensors |= {name: parameter.value for name, parameter in _parameters(layer)}
    masks = {name: p.mask for name, p in _parameters(layer) if p.mask is not None}

    out, log_det, cache = apply(point, context)
    dout, dlog_det = rng.normal(size=out.shape), rng.normal(size=log_det.shape)

    def terms() -> np.ndarray:
        out, log_det, _ = apply(point, context)
        return np.array([(dout * _host(out)).sum(), (dlog_det * _host(log_det)).sum()])

    # Which of the two terms are switched on; their differences come from the same evaluations.
    switches = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    names = [f"d{out_name} and dlog_det", f"d{out_name} alone", "dlog_det alone"]
    with _grads_kept(layer):
        gradients = [
            _pull_back(layer, pull_back, cache, tensors, a * dout, b * dlog_det)
            for a, b in switches
        ]
    size = np.abs(dout * _host(out)).sum() + np.abs(dlog_det * _host(log_det)).sum()
    for name, tensor in tensors.items():
        elementwise = tensor.size <= ELEMENTWISE
        if elementwise:
            directions = np.eye(tensor.size)
        else:
            directions = rng.normal(size=(RANDOM_DIRECTIONS, tensor.size))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        if name in masks:
            _require_masked(layer, name, masks[name], gradients)
            directions = directions * masks[name].ravel()
        found = directions @ np.stack([gradient[name].ravel() for gradient in gradients], axis=1)
        h = step * _typical_size(tensor)
        differences = _differences(backend, terms, tensor, directions, h)
        fine, coarse = (slopes @ switches.T for slopes in differences)
        rounding = size * np.finfo(np.float64).eps / h
        errors, orders = _agreement(found, fine, coarse, rounding)
        for k, cotangents in enumerate(names):
            report = GradientReport(direction, name, cotangents, errors[k], orders[k])
            expected = _five_point(fine, coarse)[:, k]
            worst = int(np.abs(found[:, k] - expected).argmax())
            where = f"random direction {worst}"
            if elementwise:
                where = f"index {tuple(map(int, np.unravel_index(worst, tensor.shape)))}"
            _require_agreement(
                type(layer).__name__, report, tolerance, found[:, k], expected, where
            )
            yield report


def _require_masked(
    layer: Bijection, name: str, mask: np.ndarray, gradients: list[dict[str, np.ndarray]]
) -> None:
    if any(gradient[name][~mask].any() for gradient in gradients):
        raise CheckError(
            f"{type(layer).__name__}: the gradient of {name} is not zero outside its mask"
        )


def _pull_back(
    layer: Bijection,
    pull_back: Callable,
    cache: Any,
    tensors: dict[str, Array],
    dout: np.ndarray,
    dlog_det: np.ndarray,
) -> dict[str, np.ndarray]:
    """The gradients by hand. Those of parameters start at 1, since they must be added to."""
    start = {name: np.ones(p.shape) if p.mask is None else p.mask for name, p in _parameters(layer)}
    for name, parameter in _parameters(layer):
        parameter.grad[...] = layer.backend.array(start[name])
    dpoint, dcontext = pull_back(cache, layer.backend.array(dout), layer.backend.array(dlog_det))
    gradients = {name: _host(p.grad) - start[name] for name, p in _parameters(layer)}
    gradients[next(iter(tensors))] = _host(dpoint)
    if "context" in tensors:
        none = np.zeros(tensors["context"].shape)
        gradients["context"] = none if dcontext is None else _host(dcontext)
    for name, tensor in tensors.items():
        if gradients[name].shape != tensor.shape:
            raise CheckError(
                f"{type(layer).__name__}: the gradient of {name} has shape "
                f"{gradients[name].shape}, expected {tensor.shape}"
            )
    return gradients


def _differences(
    backend: Backend,
    evaluate: Callable[[], np.ndarray],
    tensor: Array,
    directions: np.ndarray,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """D(step) and D(2 step), (directions, functions), of evaluate() as tensor is moved in place."""
    kept = tensor.copy()
    fine, coarse = [], []
    try:
        for direction in directions:
            v = backend.array(direction.reshape(tensor.shape))

            def at(h: float, v: Array = v) -> np.ndarray:
                tensor[...] = kept + h * v
                return evaluate()

            fine.append(_central(at, step))
            coarse.append(_central(at, 2 * step))
    finally:
        tensor[...] = kept
    return np.array(fine), np.array(coarse)


def _central(at: Callable[[float], np.ndarray], h: float) -> np.ndarray:
    return (at(h) - at(-h)) / (2 * h)


def _five_point(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    return (4 * fine - coarse) / 3


def _agreement(
    found: np.ndarray, fine: np.ndarray, coarse: np.ndarray, rounding: float
) -> tuple[list[float], list[float | None]]:
    """Relative errors and observed orders, one a function; arrays (directions, functions)."""
    expected = _five_point(fine, coarse)
    scale = np.maximum(np.abs(expected).max(axis=0), SMALLEST_SCALE)
    errors = np.abs(found - expected).max(axis=0) / scale
    at_fine = np.linalg.norm(fine - found, axis=0)
    at_coarse = np.linalg.norm(coarse - found, axis=0)
    resolved = at_coarse > 1e3 * rounding * math.sqrt(len(found))
    orders = [
        float(np.log2(c / f)) if r and f > 0 else None
        for f, c, r in zip(at_fine, at_coarse, resolved, strict=True)
    ]
    return [float(error) for error in errors], orders


def _require_agreement(
    kind: str,
    report: GradientReport,
    tolerance: float,
    found: np.ndarray,
    expected: np.ndarray,
    where: str,
) -> None:
    worst = int(np.abs(found - expected).argmax())
    values = f"{found.flat[worst]:.10g} by hand, {expected.flat[worst]:.10g} by differences"
    about = (
        f"{kind} {report.direction}: gradient of {report.tensor} at {where} "
        f"for {report.cotangents}: {values}"
    )
    if not report.error <= tolerance:  # NaN fails too
        raise CheckError(f"{about}; relative error {report.error:.1e}, allowed {tolerance:.1e}")
    if report.order is not None and not report.order >= LOWEST_ORDER:
        raise CheckError(
            f"{about}; central differences approach it with order {report.order:.2f}, expected 2"
        )


def _compare(what: str, found: Any, expected: Any, tolerance: float) -> float:
    """The largest |found - expected| / (1 + |expected|); CheckError if it is above tolerance."""
    found, expected = np.asarray(_host(found)), np.asarray(_host(expected))
    if found.shape != expected.shape:
        raise CheckError(f"{what} has shape {found.shape}, expected {expected.shape}")
    if found.size == 0:
        return 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    errors = np.abs(found - expected) / (1 + np.abs(expected))
    worst = np.unravel_index(int(errors.argmax()), errors.shape)  # argmax finds a NaN first
    if not errors[worst] <= tolerance:
        raise CheckError(
            f"{what} at index {tuple(map(int, worst))} is {found[worst]:.10g}, expected "
            f"{expected[worst]:.10g}; relative error {errors[worst]:.1e}, allowed {tolerance:.1e}"
        )
    return float(errors[worst])


def _leaves(path: str, cache: Any) -> Iterator[tuple[str, Any]]:
    """The arrays and numbers of a cache with their paths. Names (of a direction) are left out."""
    if isinstance(cache, dict):
        items = list(cache.items())
    elif hasattr(cache, "_fields"):
        items = list(zip(cache._fields, cache, strict=True))
    elif isinstance(cache, tuple | list):
        items = list(enumerate(cache))
    elif cache is None or isinstance(cache, str):
        return
    else:
        yield path, cache
        return
    for name, item in items:
        yield from _leaves(f"{path}.{name}", item)


def _parameters(component: Component) -> Iterator[tuple[str, Parameter]]:
    return ((name, member) for name, member in walk(component) if isinstance(member, Parameter))


@contextmanager
def _grads_kept(component: Component) -> Iterator[None]:
    """Put the gradients of the parameters back at the end."""
    kept = [(parameter, parameter.grad.copy()) for _, parameter in _parameters(component)]
    try:
        yield
    finally:
        for parameter, grad in kept:
            parameter.grad[...] = grad


def _typical_size(tensor: Array) -> float:
    """The root mean square, if that is above 1 (pixels go up to 256); else 1."""
    return max(1.0, math.sqrt(float((tensor * tensor).mean())))


def _host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


def _require_float64(backend: Backend) -> None:
    if backend.dtype != np.float64:
        raise DtypeError(
            f"the component is in {backend.dtype}; differences need float64: prepare it with "
            "dtype='float64'"
        )
