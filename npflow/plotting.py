"""Figures as PNG files: image grids, training curves, 2-D densities and the walk of a flow.

Nothing here touches pyplot's global state, so that it works without a display and in any program.
Every function raises CheckpointError if its file cannot be written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from npflow import checkpoint
from npflow.errors import ConfigurationError, ShapeError
from npflow.flow import Flow

PathLike = str | os.PathLike[str]
Extent = tuple[float, float, float, float]  # x_min, x_max, y_min, y_max

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9")
INK = LinearSegmentedColormap.from_list("ink", ["white", "#56B4E9", BLUE, "#00243A"])
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
}
DPI = 160
GAP = 2  # pixels between images, before enlarging
ENLARGE = 2
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
BATCH = 50_000  # grid points at a time


# Images


def image_grid(
    images: ArrayLike, path: PathLike, columns: int = 10, shape: tuple[int, int] = (28, 28)
) -> None:
    """A grid of grey images, row by row.

    images: (n, height * width), 8-bit integers or floats in [0, 256). Raises ShapeError.
    """
    png = io.BytesIO()
    pixels = _tiles(images, columns, shape).repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1)
    imsave(png, pixels, format="png", **GREY)
    checkpoint.write_bytes(Path(path), png.getvalue())


def image_rows(
    rows: Mapping[str, ArrayLike], path: PathLike, shape: tuple[int, int] = (28, 28)
) -> None:
    """One row of grey images for each label, such as "T = 0.7" or "epoch 13".

    rows: label -> images as in image_grid, equally many in each row. Raises ShapeError.
    """
    lengths = {len(np.asarray(images)) for images in rows.values()}
    if len(lengths) != 1:
        raise ShapeError(
            f"{len(rows)} rows have {sorted(lengths)} images; expected one row or more, "
            "all of one length"
        )
    pixels = _tiles(np.concatenate([np.asarray(v) for v in rows.values()]), lengths.pop(), shape)
    height, width = (ENLARGE * n for n in pixels.shape)
    margin = 10 * max(map(len, rows)) + 20  # of the labels
    with _figure(path, (width + margin) / DPI, height / DPI, layout=None) as figure:
        axes = figure.add_axes((margin / (width + margin), 0, width / (width + margin), 1))
        axes.imshow(pixels, interpolation="nearest", aspect="auto", **GREY)
        pitch = shape[0] + GAP
        axes.set_yticks(np.arange(len(rows)) * pitch + (shape[0] - 1) / 2, list(rows))
        axes.tick_params(length=0)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)


def _tiles(images: ArrayLike, columns: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The images side by side, white between them, in rows of at most `columns`."""
    images = np.asarray(images)
    height, width = shape
    if images.ndim != 2 or images.shape[1] != height * width or len(images) == 0 or columns < 1:
        raise ShapeError(
            f"images have shape {images.shape} and {columns} columns; expected "
            f"(n, {height * width}) for images of {height} x {width}, and n, columns >= 1"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    tiles = np.full((rows * columns, height + GAP, width + GAP), 255, np.uint8)
    tiles[: len(images), :-GAP, :-GAP] = np.clip(images, 0, 255).reshape(-1, height, width)
    grid = tiles.reshape(rows, columns, height + GAP, width + GAP).swapaxes(1, 2)
    return grid.reshape(rows * (height + GAP), columns * (width + GAP))[:-GAP, :-GAP]


# Curves


def curves(
    records: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    path: PathLike,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> None:
    """Metrics over epochs, with dashed lines at reference values.

    records    : one dictionary an epoch, with "epoch" (as in metrics.jsonl)
    keys       : metric -> its label; epochs without the metric are left out
    references : label -> value
    """
    references = {} if references is None else references
    with _figure(path, 5.2, 3.2) as figure:
        axes = figure.add_subplot(xlabel="epoch", ylabel=ylabel)
        shown: list[float] = []
        for (key, label), colour in zip(keys.items(), COLOURS, strict=False):
            points = [(r["epoch"], r[key]) for r in records if key in r]
            if points:
                epochs, values = zip(*points, strict=True)
                marker = "o" if len(points) == 1 else None
                axes.plot(epochs, values, color=colour, label=label, lw=1.4, marker=marker, ms=4)
                shown.extend(values)
        for (label, value), colour in zip(references.items(), ("0.25", "0.6"), strict=False):
            axes.axhline(value, color=colour, ls="--", lw=1, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _limit(axes, [*shown, *references.values()])
        axes.legend()


def _limit(axes: Axes, values: Sequence[float]) -> None:
    """Cut off the first epochs' peak, which would flatten all that comes after it."""
    if len(values) < 10:
        return
    low, high = min(values), float(np.quantile(values, 0.95))
    if max(values) > high + 0.5 * (high - low):
        axes.set_ylim(low - 0.06 * (high - low), high + 0.25 * (high - low))


# Histograms


def histograms(
    values: Mapping[str, ArrayLike], path: PathLike, xlabel: str, bins: int = 80
) -> None:
    """Histograms of sets of numbers over one axis, each scaled to a peak of 1.

    values : label -> (n,) finite numbers. The axis is logarithmic if all are positive and the
             largest is more than ten times the smallest
    bins   : over the range of all
    """
    columns = {label: np.asarray(column, np.float64) for label, column in values.items()}
    low = min(float(column.min()) for column in columns.values())
    high = max(float(column.max()) for column in columns.values())
    logarithmic = high > 10 * low > 0
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    with _figure(path, 5.2, 3.0) as figure:
        axes = figure.add_subplot(xlabel=xlabel, yticks=[])
        for (label, column), colour in zip(columns.items(), COLOURS, strict=False):
            counts, _ = np.histogram(column, edges)
            axes.stairs(counts / counts.max(), edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts / counts.max(), edges, color=colour, label=label, lw=1.2)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.spines["left"].set_visible(False)
        axes.legend()


# Densities in the plane


def grid(extent: Extent, size: int) -> NDArray[np.float64]:
    """The centres of size x size cells, (size^2, 2), x running fastest."""
    x_min, x_max, y_min, y_max = extent
    if not (x_max > x_min and y_max > y_min and size >= 1):
        raise ConfigurationError(
            f"extent is {extent} and size {size}; expected x_min < x_max, y_min < y_max, size >= 1"
        )
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(x_min + centres * (x_max - x_min), y_min + centres * (y_max - y_min))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def grid_log_prob(flow: Flow, extent: Extent, size: int = 200) -> NDArray[np.float64]:
    """log p in nats at the cells of `grid`, (size, size); row 0 is at y_min."""
    points = grid(extent, size)
    backend = flow.backend
    log_prob = [
        backend.to_numpy(flow.log_prob(backend.array(points[start : start + BATCH])))
        for start in range(0, len(points), BATCH)
    ]
    return np.concatenate(log_prob).reshape(size, size).astype(np.float64)


def integral(values: NDArray[np.float64], extent: Extent) -> float:
    """The integral over the extent of a function given at the cells of `grid` (midpoint rule)."""
    x_min, x_max, y_min, y_max = extent
    return float(values.mean()) * (x_max - x_min) * (y_max - y_min)


def surrounding(points: ArrayLike, margin: float = 0.1) -> Extent:
    """The extent of points (n, 2), wider by the margin, a fraction of each side, all around."""
    points = np.asarray(points, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def density(
    flow: Flow,
    data: ArrayLike | Callable[[NDArray[np.float64]], NDArray[np.float64]],
    path: PathLike,
    *,
    extent: Extent | None = None,
    size: int = 300,
    seed: int = 0,
    shown: int = 5000,
) -> None:
    """Three panels: the data, the model's density, and samples of the model.

    data   : points (n, 2), of which `shown` are drawn, or the target's log-density, a function
             from points (n, 2) to (n,), up to a constant; the latter needs an extent
    extent : of the panels; by default that of the points drawn
    """
    if extent is None:
        if callable(data):
            raise ConfigurationError("the density of a function needs an extent; give extent=...")
        extent = surrounding(np.asarray(data)[:shown])
    samples = flow.backend.to_numpy(flow.sample(shown, seed))
    height_by_width = (extent[3] - extent[2]) / (extent[1] - extent[0])
    with _figure(path, 8.4, 0.5 + 2.6 * float(np.clip(height_by_width, 0.3, 1.5))) as figure:
        first, second, third = figure.subplots(1, 3, sharex=True, sharey=True)
        if callable(data):
            log_target = np.asarray(data(grid(extent, size)), np.float64).reshape(size, size)
            _draw_density(first, np.exp(log_target - log_target.max()), extent, "target density")
        else:
            _draw_points(first, np.asarray(data)[:shown], "data")
        _draw_density(second, np.exp(grid_log_prob(flow, extent, size)), extent, "model density")
        _draw_points(third, samples, "samples")
        for axes in (first, second, third):
            axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")


def densities(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]], path: PathLike, extent: Extent
) -> None:
    """Densities side by side on one scale, and points drawn from each below.

    panels : title -> the density at the cells of `grid` (size, size), and points (n, 2)
    """
    highest = max(float(np.max(values)) for values, _ in panels.values())
    height_by_width = (extent[3] - extent[2]) / (extent[1] - extent[0])
    height = 0.5 + 5.2 * float(np.clip(height_by_width, 0.3, 1.5))
    with _figure(path, 2.8 * len(panels), height) as figure:
        axes = figure.subplots(2, len(panels), sharex=True, sharey=True, squeeze=False)
        for (title, (values, points)), upper, lower in zip(
            panels.items(), axes[0], axes[1], strict=True
        ):
            _draw_density(upper, np.asarray(values), extent, title, highest)
            _draw_points(lower, np.asarray(points), "")
        for panel in axes.ravel():
            panel.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")


def morph(stages: Sequence[tuple[str, ArrayLike]], quadrants: ArrayLike, path: PathLike) -> None:
    """The walk from latents to data, one panel a stage, every point in its latent's colour.

    stages    : title and points (n, 2)
    quadrants : (n,) integers 0..3, the colour of each point
    """
    colours = np.array(COLOURS[:4])[np.asarray(quadrants)]
    columns = -(-len(stages) // 2)
    with _figure(path, 1.75 * columns, 3.8) as figure:
        panels = figure.subplots(2, columns, squeeze=False).ravel()
        for axes, (title, points) in zip(panels, stages, strict=False):
            _draw_points(axes, np.asarray(points), title, colours)
            axes.set_aspect("equal", adjustable="datalim")
            axes.locator_params(nbins=4)
        for axes in panels[len(stages) :]:
            axes.set_axis_off()


# Functions of one variable


class Function(NamedTuple):
    """A function at increasing x, and the x of its knots."""

    label: str
    x: NDArray
    y: NDArray
    knots: NDArray


def functions(panels: Mapping[str, Sequence[Function]], path: PathLike) -> None:
    """One square panel for each title, with its functions and a dot at each of their knots."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with _figure(path, 2.8 * columns, 3.0 * rows) as figure:
        grid_of_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, shown) in zip(grid_of_axes, panels.items(), strict=False):
            axes.axline((0, 0), slope=1, color="0.8", lw=0.8, zorder=0)
            for (label, x, y, knots), colour in zip(shown, COLOURS, strict=False):
                axes.plot(x, y, color=colour, label=label, lw=1.2)
                axes.plot(knots, np.interp(knots, x, y), ".", color=colour, ms=4)
            axes.set(title=title, aspect="equal")
            axes.legend(fontsize=7, handlelength=1, borderaxespad=0)
            axes.locator_params(nbins=8, integer=True)
        for axes in grid_of_axes[len(panels) :]:
            axes.set_axis_off()


def _draw_points(axes: Axes, points: NDArray, title: str, colours: Any = BLUE) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=2, c=colours, alpha=0.5, linewidths=0)
    axes.set_title(title)


def _draw_density(
    axes: Axes, values: NDArray, extent: Extent, title: str, highest: float | None = None
) -> None:
    axes.imshow(
        values, origin="lower", extent=extent, cmap=INK, vmin=0, vmax=highest,
        interpolation="bilinear",
    )  # fmt: skip
    axes.set_title(title)


@contextmanager
def _figure(
    path: PathLike, width: float, height: float, layout: Any = "constrained"
) -> Iterator[Figure]:
    """A figure of that size in inches, written to path when the block ends."""
    png = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure
        figure.savefig(png, format="png", dpi=DPI)
    checkpoint.write_bytes(Path(path), png.getvalue())
