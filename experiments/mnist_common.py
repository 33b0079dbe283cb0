"""Training, evaluation and figures that the MNIST experiments share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from common import MODEL, Options, make_folder, write_summary

from npflow import datasets, plotting, random
from npflow.backend import Array, get_backend
from npflow.bijections import dequantize
from npflow.flow import Flow
from npflow.metrics import bits_per_dim, standard_error
from npflow.random import Stream
from npflow.training import TrainingOptions, evaluate, fit

INITIALIZATION_ROWS = 1000
TEMPERATURES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
INTERPOLATION_ROWS, INTERPOLATION_STEPS = 10, 20


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One configuration of a script: build(**model) is trained with TrainingOptions(**training).

    references : published bits/dim to draw beside the curve
    reached    : what runs of this script's configurations have reached, printed at the end
    """

    name: str
    build: Callable[..., Flow]
    model: dict[str, Any]
    training: dict[str, Any]
    references: dict[str, float]
    reached: str


def train_and_report(options: Options, experiment: Experiment) -> None:
    """Fit the flow to MNIST, and leave metrics, summary, model and figures in the run's folder."""
    model, settings = dict(experiment.model), dict(experiment.training)
    if options.smoke:
        model |= {"hidden": (32, 32)}
        settings |= {"epochs": 2}
    if options.epochs is not None:
        settings |= {"epochs": options.epochs}
    training = TrainingOptions(**settings, memory=options.memory, seed=options.seed)
    flow = experiment.build(
        **model, backend=options.backend, dtype=options.dtype, seed=options.seed
    )
    folder = make_folder(options, experiment.name)
    mnist = datasets.mnist()
    train, validation, test = mnist.train, mnist.validation, mnist.test
    if options.smoke:
        train, validation, test = train[:512], validation[:256], test[:256]
    epochs_shown = sorted({1, *np.linspace(1, training.epochs, 4).round().astype(int).tolist()})

    def show_samples(epoch: int, flow: Flow) -> None:
        if epoch in epochs_shown:
            np.save(folder / f"samples-{epoch:03}.npy", pixels(flow, flow.sample(10, seed=1)))

    first = flow.backend.xp.asarray(train[:INITIALIZATION_ROWS])
    flow.initialize(dequantize(flow.backend, first, options.seed, 0, Stream.DEQUANTIZE_EVALUATION))
    history = fit(
        flow,
        train,
        validation,
        options=training,
        out=folder,
        resume=options.resume,
        on_epoch=show_samples,
    )
    flow.save(folder / MODEL)
    nll = evaluate(flow, test)
    best = min(history, key=lambda record: record["validation_nll"])
    results = {
        "test_nll": float(nll.mean()),
        "test_nll_standard_error": float(standard_error(nll)),
        "test_bits_per_dim": float(bits_per_dim(nll.mean(), flow.features)),
        "validation_bits_per_dim": best["validation_bits_per_dim"],
        "best_epoch": best["epoch"],
        "epochs": history[-1]["epoch"],
        "seconds": history[-1]["seconds"],
        "training": dataclasses.asdict(training),
    }
    draw_figures(folder, flow, history, epochs_shown, experiment.references)
    write_summary(folder, flow, options, results)
    print(experiment.reached, file=sys.stderr)  # stdout holds the summary alone


def draw_figures(
    folder: Path,
    flow: Flow,
    history: list[dict],
    epochs_shown: list[int],
    references: dict[str, float],
) -> None:
    """The curve, a grid of samples, samples by temperature and over epochs, and interpolations."""
    keys = {"train_bits_per_dim": "training", "validation_bits_per_dim": "validation"}
    plotting.curves(history, keys, folder / "bits_per_dim.png", "bits/dim", references)
    plotting.image_grid(pixels(flow, flow.sample(100, seed=0)), folder / "samples.png")
    by_temperature = {
        f"T = {t}": pixels(flow, flow.sample(10, seed=0, temperature=t)) for t in TEMPERATURES
    }
    plotting.image_rows(by_temperature, folder / "temperatures.png")
    files = {epoch: folder / f"samples-{epoch:03}.npy" for epoch in epochs_shown}
    over_epochs = {f"epoch {e}": np.load(file) for e, file in files.items() if file.is_file()}
    if over_epochs:
        plotting.image_rows(over_epochs, folder / "samples_over_epochs.png")
    images = pixels(flow, flow.from_latent(interpolated_latents(flow, seed=0)))
    plotting.image_grid(images, folder / "interpolation.png", columns=INTERPOLATION_STEPS)


def interpolated_latents(flow: Flow, seed: int) -> Array:
    """Straight walks between points of the unit cube, mapped to normal latents by the quantile
    function; each row ends where the next one begins (the UvA report, section 2.7).
    """
    host = get_backend("reference", np.float64)
    shape = (INTERPOLATION_ROWS + 1, flow.base.features)
    corners = random.uniform(host, shape, seed, random.Stream.SAMPLE, 1)
    t = np.linspace(0, 1, INTERPOLATION_STEPS)[:, None]
    rows = [(1 - t) * start + t * stop for start, stop in pairwise(corners)]
    quantile = np.vectorize(NormalDist().inv_cdf)
    return flow.backend.array(quantile(np.concatenate(rows)))


def pixels(flow: Flow, x: Array) -> np.ndarray:
    """x in [0, 256) as 8-bit pixels."""
    return np.clip(np.floor(flow.backend.to_numpy(x)), 0, 255).astype(np.uint8)
