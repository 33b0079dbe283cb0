"""The inverse of an autoregressive network in one pass; formulas in reference/autoregressive.py.

Panels of features are solved one after another; between two of them matrix products carry on what
the panel found out. The kernels read the ends of the degrees on the device: nothing is copied.
"""

import cupy
import numpy as np
from cupy import ndarray

from .launch import (
    ARRAY,
    ARRAYS,
    INDEX_ARRAYS,
    INDICES,
    REAL,
    RESULT,
    Family,
    checked_arrays,
    empty_like,
    per_tile,
)
from .linear import LEAKY_SLOPE, _code

MAPS = ("additive", "affine", "rational_quadratic", "bernoulli", "mixture")  # as in the .cu file
MAPS_WITH_GRADIENT = MAPS[:3]
PANEL_UNITS = 64  # of the widest layer, on average: about a tile's side

Arrays = tuple[ndarray, ...]

_family = Family("autoregressive")
_invert_panel = _family.kernel(
    "invert_panel", z=ARRAY, nodes=ARRAYS, weights=ARRAYS, direct=ARRAY, ends=INDEX_ARRAYS,
    constants=ARRAY, hidden=np.int32, has_direct=np.int32, activation=np.int32, leaky_slope=REAL,
    map=np.int32, parts=np.int32, numbers=np.int32, first=np.int64, last=np.int64, d=np.int64,
)  # fmt: skip
_push = _family.kernel(
    "push", source=ARRAY, source_ends=INDICES, weight=ARRAY, target=RESULT, target_ends=INDICES,
    first=np.int64, last=np.int64, batch=np.int64, n_in=np.int64, n=np.int64,
)  # fmt: skip
_invert_panel_backward = _family.kernel(
    "invert_panel_backward", dlog_det=ARRAY, x=ARRAY, outputs=ARRAYS, params=ARRAY, nodes=ARRAYS,
    weights=ARRAYS, direct=ARRAY, ends=INDEX_ARRAYS, constants=ARRAY, hidden=np.int32,
    has_direct=np.int32, activation=np.int32, leaky_slope=REAL, map=np.int32, parts=np.int32,
    first=np.int64, last=np.int64, d=np.int64,
)  # fmt: skip
_push_back = _family.kernel(
    "push_back", source=ARRAY, source_ends=INDICES, weight=ARRAY, target=RESULT,
    target_ends=INDICES, first=np.int64, last=np.int64, batch=np.int64, n_to=np.int64,
    n=np.int64, parts=np.int32,
)  # fmt: skip


def autoregressive_inverse(
    z: ndarray,
    context: ndarray,
    weights: Arrays,
    biases: Arrays,
    direct: ndarray,
    reaches: Arrays,
    ends: Arrays,
    activation: str,
    map: str,
    constants: ndarray,
) -> tuple[ndarray, Arrays, ndarray]:
    """x with map(x; params(x)) = z; returns x, the hidden layers' outputs and params."""
    if map not in MAPS:
        raise ValueError(f"unknown map {map!r}")
    z, context = checked_arrays("autoregressive_inverse", ARRAY, z=z, context=context)
    batch, d, known = len(z), len(reaches[-1]), context.shape[1]
    x = cupy.empty((batch, d), z.dtype)
    sums = [cupy.broadcast_to(bias, (batch, len(bias))).copy() for bias in biases]
    if known:
        sums[0] += cupy.matmul(context, weights[0][:known])
        if len(direct):
            sums[-1] += cupy.matmul(context, direct[:known])
    nodes = (x, *sums)
    network = _Network(weights, direct, ends, known, d)
    for first in range(0, d, network.panel):
        last = min(first + network.panel, d)
        _invert_panel(
            z.dtype, ((batch,), (network.threads,)), z, nodes, network.weights, network.direct,
            network.ends, constants, len(ends), int(network.has_direct), _code(activation),
            LEAKY_SLOPE, MAPS.index(map), network.parts, z.shape[1] // d, first, last, d,
        )  # fmt: skip
        if last == d:
            break
        for source, target, weight in network.edges:
            n_in, parts, n = network.sizes(target, weight)
            _push(
                z.dtype, per_tile(batch, n, parts), nodes[source], network.ends[source], weight,
                nodes[target], network.ends[target], first, last, batch, n_in, n,
            )  # fmt: skip
    *hidden, params = sums
    return x, tuple(hidden), params


def autoregressive_inverse_backward(
    dx: ndarray,
    dlog_det: ndarray,
    x: ndarray,
    activations: Arrays,
    params: ndarray,
    weights: Arrays,
    direct: ndarray,
    reaches: Arrays,
    ends: Arrays,
    activation: str,
    map: str,
    constants: ndarray,
) -> ndarray:
    """The whole gradient that reaches x: dx, and what later features add through their params."""
    if map not in MAPS_WITH_GRADIENT:
        raise ValueError(f"the map {map!r} has no gradient")
    batch, d = dx.shape
    known = x.shape[1] - d
    x = cupy.ascontiguousarray(x[:, known:])
    total = dx.copy()
    nodes = (total, *(cupy.zeros_like(h, order="C") for h in activations), empty_like(params))
    network = _Network(weights, direct, ends, known, d)
    for first in reversed(range(0, d, network.panel)):
        last = min(first + network.panel, d)
        _invert_panel_backward(
            x.dtype, ((batch,), (network.threads,)), dlog_det, x, activations, params, nodes,
            network.weights, network.direct, network.ends, constants, len(ends),
            int(network.has_direct), _code(activation), LEAKY_SLOPE, MAPS.index(map), network.parts,
            first, last, d,
        )  # fmt: skip
        if first == 0:
            break
        for source, target, weight in network.edges:
            n_in, parts, n = network.sizes(target, weight)
            _push_back(
                x.dtype, per_tile(batch, n_in), nodes[target], network.ends[target], weight,
                nodes[source], network.ends[source], first, last, batch, n_in, n, parts,
            )  # fmt: skip
    return total


class _Network:
    """The network as the nodes and weights of cuda/autoregressive.cu, and its panels."""

    def __init__(self, weights: Arrays, direct: ndarray, ends: Arrays, known: int, d: int) -> None:
        self.weights = (weights[0][known:], *weights[1:])
        self.direct = direct[known:]
        self.has_direct = len(direct) > 0
        features = cupy.arange(1, d + 1)
        self.ends = (features, *ends, features)
        self.edges = [(layer, layer + 1, weight) for layer, weight in enumerate(self.weights)]
        if self.has_direct:
            self.edges.append((0, len(weights), self.direct))
        widths = [weight.shape[1] for weight in weights]
        self.parts = widths[-1] // d  # of the params
        self.panel = max(1, PANEL_UNITS * d // max((d, *widths[:-1])))
        self.threads = min(256, -(-max(widths) * min(self.panel, d) // d // 32) * 32)

    def sizes(self, target: int, weight: ndarray) -> tuple[int, int, int]:
        """Rows of a weight into the node `target`, parts of its columns, and columns of a part."""
        parts = self.parts if target == len(self.weights) else 1
        return weight.shape[0], parts, weight.shape[1] // parts
