"""Rational-quadratic spline flows on a two-dimensional toy density."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import run
from toy_common import ToyOptions, train_and_report

from npflow import plotting
from npflow.bijections import Coupling, MaskedAutoregressive
from npflow.elementwise.rational_quadratic import MINIMUM
from npflow.flow import Flow
from npflow.models import SPLINE_CONFIGURATIONS, maf, spline_coupling

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "coupling": (spline_coupling, SPLINE_CONFIGURATIONS["toy"]),
    # As many splines as four couplings have, one for each feature and layer.
    "autoregressive": (
        maf,
        {"features": 2, "layers": 2, "hidden": (64, 64), "map": "spline", "bins": 8, "bound": 5.0},
    ),
}
TRAINING = {"epochs": 50, "batch_size": 256}
TRAINING_POINTS = 100_000  # in fewer, splines can follow single points
QUANTILES = (0.05, 0.275, 0.5, 0.725, 0.95)  # of the feature that a drawn spline is given


@dataclass
class SplineOptions(ToyOptions):
    model: Literal["coupling", "autoregressive"] = "coupling"
    """What computes the splines' parameters."""


def main(options: SplineOptions) -> None:
    """Train a spline flow on a 2-D toy density; ends with the test nll above its entropy."""
    build, model = MODELS[options.model]
    if options.smoke:
        model = model | {"hidden": (8, 8)}
    flow = build(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)
    name = f"toy_spline_{options.dataset}"
    if options.model != "coupling":
        name += f"_{options.model}"
    train_and_report(options, name, flow, TRAINING, draw, TRAINING_POINTS)


def draw(folder: Path, flow: Flow, train: np.ndarray) -> None:
    """splines.png: each layer's map of one feature, for a few values of the other."""
    x = flow.backend.array(train)
    panels = {}
    for k, layer in enumerate(flow.bijection.layers, start=1):
        if isinstance(layer, Coupling | MaskedAutoregressive):
            given = layer.kept[0] if isinstance(layer, Coupling) else 0
            panels[f"layer {k}: feature {2 - given}"] = splines(flow, layer, x, given)
        x, _, _ = layer.forward(x)
    plotting.functions(panels, folder / "splines.png")


def splines(
    flow: Flow, layer: Coupling | MaskedAutoregressive, x: Any, given: int
) -> list[plotting.Function]:
    """The layer's map of the other feature at quantiles that feature `given` has in x."""
    to_numpy, bound = flow.backend.to_numpy, layer.map.bound
    values = np.quantile(to_numpy(x)[:, given], QUANTILES)
    inputs = np.linspace(-1.1 * bound, 1.1 * bound, 1001)
    functions = []
    for value in values:
        points = np.full((len(inputs), 2), value)
        points[:, 1 - given] = inputs
        rows = flow.backend.array(points)
        outputs = to_numpy(layer.forward(rows)[0])[:, 1 - given]
        label = f"feature {given + 1} = {value:z.2f}"
        edges = knots(to_numpy(raw_widths(layer, rows[:1], given)), bound)
        functions.append(plotting.Function(label, inputs, outputs, edges))
    return functions


def raw_widths(layer: Coupling | MaskedAutoregressive, x: Any, given: int) -> Any:
    """The first parameters of the spline of the other feature, for one row x (1, 2)."""
    bins = layer.map.bins
    if isinstance(layer, Coupling):
        return layer.conditioner.forward(x[:, given : given + 1])[0][0, :bins]
    return layer.network.forward(x)[0].reshape(-1, 2)[:bins, 1 - given]


def knots(raw: np.ndarray, bound: float) -> np.ndarray:
    """Where the bins of a spline begin and end, (bins + 1,); docs/rational_quadratic.md, F1-F2."""
    softmax = np.exp(raw - raw.max())
    softmax /= softmax.sum()
    widths = MINIMUM + (1 - len(raw) * MINIMUM) * softmax
    return bound * (2 * np.concatenate([[0], np.cumsum(widths)]) - 1)


if __name__ == "__main__":
    run(main, SplineOptions)
