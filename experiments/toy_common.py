"""Points, training, judgement and figures that the toy experiments share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import MODEL, Options, make_folder, write_summary

from npflow import plotting
from npflow.datasets import TOYS, toy, toy_entropy
from npflow.flow import Flow
from npflow.metrics import standard_error
from npflow.training import TrainingOptions, evaluate, fit

# Points of the training, validation and test set, each drawn from a seed of its own.
POINTS = (50_000, 20_000, 200_000)
SMOKE_POINTS = (500, 500, 500)
SMOKE_EPOCHS, SMOKE_BATCH_SIZE = 3, 64
INTEGRATION_SIZE = 1500  # cells on a side of the grid that the density is integrated over


@dataclasses.dataclass
class ToyOptions(Options):
    dataset: Literal[*TOYS] = "two_moons"
    """The density to draw the points from."""


def train_and_report(
    options: ToyOptions,
    name: str,
    flow: Flow,
    training: dict[str, Any],
    draw: Callable[[Path, Flow, np.ndarray], None],
    training_points: int = POINTS[0],
) -> None:
    """Fit the flow, and leave metrics, summary, model and figures in the run's folder.

    training : keyword arguments of TrainingOptions
    draw     : draws the script's own figures into the folder, from the flow and the training data
    """
    folder = make_folder(options, name)
    train, validation, test = points(options, training_points)
    settings = training_options(options, **training)
    history = fit(flow, train, validation, options=settings, out=folder, resume=options.resume)
    flow.save(folder / MODEL)
    results = judge(options, flow, train, test) | {
        "epochs": history[-1]["epoch"],
        "steps": history[-1]["step"],
        "seconds": history[-1]["seconds"],
        "training": dataclasses.asdict(settings),
    }
    draw_curve(folder, history, toy_entropy(options.dataset))
    plotting.density(flow, train, folder / "density.png", seed=options.seed)
    draw(folder, flow, train)
    write_summary(folder, flow, options, results)


def points(
    options: ToyOptions, training_points: int = POINTS[0]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test points (n, 2)."""
    sizes = SMOKE_POINTS if options.smoke else (training_points, *POINTS[1:])
    train, validation, test = (toy(options.dataset, n, seed) for seed, n in enumerate(sizes))
    return train, validation, test


def training_options(options: Options, epochs: int, **settings: Any) -> TrainingOptions:
    """What the command line says, or else these epochs, and settings that suit toy densities."""
    if options.smoke:
        epochs, settings = SMOKE_EPOCHS, settings | {"batch_size": SMOKE_BATCH_SIZE}
    return TrainingOptions(
        epochs=options.epochs or epochs,
        learning_rate=2e-3,
        schedule="cosine",
        max_norm=5.0,
        average=0.999,
        memory=options.memory,
        seed=options.seed,
        **settings,
    )


def judge(options: ToyOptions, flow: Flow, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """The test nll, how far above the entropy it is, and the integral of the density."""
    nll = evaluate(flow, test)
    entropy = toy_entropy(options.dataset)
    size = 100 if options.smoke else INTEGRATION_SIZE
    # Wide enough for the model's own tails, which may reach further than the data's.
    samples = flow.backend.to_numpy(flow.sample(100_000, seed=options.seed))
    extent = plotting.surrounding(np.concatenate([train, samples]))
    probability = plotting.integral(np.exp(plotting.grid_log_prob(flow, extent, size)), extent)
    return {
        "dataset": options.dataset,
        "test_nll": float(nll.mean()),
        "test_nll_standard_error": standard_error(nll),
        "entropy": entropy,
        "gap": None if entropy is None else float(nll.mean()) - entropy,
        "integral": probability,
        "integral_extent": extent,
        "integral_cells": size * size,
    }


def draw_curve(folder: Path, history: list[dict], entropy: float | None) -> None:
    """curve.png: the nll over epochs, with the entropy."""
    keys = {"train_nll": "training", "validation_nll": "validation, averaged weights"}
    references = None if entropy is None else {f"entropy: {entropy:.4f}": entropy}
    plotting.curves(
        history, keys, folder / "curve.png", "negative log-likelihood (nats)", references
    )
