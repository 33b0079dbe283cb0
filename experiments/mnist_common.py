"""Training, evaluation and figures that the MNIST experiments share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from common import MODEL, Options, make_folder, write_summary

from npflow import datasets, plotting, random
from npflow.backend import Array, get_backend
from npflow.bijections import Logit
from npflow.distributions import Autoregressive, Bernoulli
from npflow.flow import Flow
from npflow.metrics import bits_per_dim, standard_error
from npflow.random import Stream
from npflow.training import Data, TrainingOptions, evaluate, fit

DIGITS = 10
INITIALIZATION_ROWS = 1000
EVALUATION_ROWS = 1000
TEMPERATURES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
INTERPOLATION_ROWS, INTERPOLATION_STEPS = 10, 20


@dataclasses.dataclass
class ImageOptions(Options):
    """Those of flows with convolutions."""

    conditional: bool = False
    """Condition on the digit."""
    dequantization: Literal["uniform", "variational"] = "uniform"
    """The noise on integer pixels: uniform, or that of a small flow which is trained along."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One configuration of a script: build(**model) is trained with TrainingOptions(**training).

    references  : published bits/dim to draw beside the curve
    reached     : what runs of this script's configurations have reached, printed at the end
    conditional : the context is the digit, one-hot
    unit        : of the curve's figure: "bits/dim" or "nats"
    more        : further results, of the flow and the test data
    draw        : further figures, into the folder, and results that go with them
    batch_size  : rows of the test data at a time
    smoke       : what --smoke changes in the model
    """

    name: str
    build: Callable[..., Flow]
    model: dict[str, Any]
    training: dict[str, Any]
    references: dict[str, float]
    reached: str
    conditional: bool = False
    unit: str = "bits/dim"
    more: Callable[[Flow, Data], dict[str, Any]] = lambda flow, test: {}
    draw: Callable[[Path, Flow, Data], dict[str, Any]] = lambda folder, flow, test: {}
    batch_size: int = EVALUATION_ROWS
    smoke: dict[str, Any] = dataclasses.field(default_factory=lambda: {"hidden": (32, 32)})


def train_and_report(options: Options, experiment: Experiment) -> None:
    """Fit the flow to MNIST, and leave metrics, summary, model and figures in the run's folder."""
    model, settings = dict(experiment.model), dict(experiment.training)
    if options.smoke:
        model |= experiment.smoke
        settings |= {"epochs": 2, "batch_size": 16}
    if options.epochs is not None:
        settings |= {"epochs": options.epochs}
    training = TrainingOptions(**settings, memory=options.memory, seed=options.seed)
    flow = experiment.build(
        **model, backend=options.backend, dtype=options.dtype, seed=options.seed
    )
    folder = make_folder(options, experiment.name)
    rows = (256, 100, 100) if options.smoke else (None, None, None)
    train, validation, test = load(flow, experiment.conditional, training.integers, rows)
    epochs_shown = sorted({1, *np.linspace(1, training.epochs, 4).round().astype(int).tolist()})

    def show_samples(epoch: int, flow: Flow) -> None:
        if epoch in epochs_shown:
            np.save(folder / f"samples-{epoch:03}.npy", samples(flow, 10, seed=1))

    first = slice(0, INITIALIZATION_ROWS)
    flow.initialize(*train.batch(flow, first, options.seed, 0, Stream.DEQUANTIZE_EVALUATION))
    history = fit(
        flow,
        train.rows,
        validation.rows,
        options=training,
        context=train.context,
        validation_context=validation.context,
        out=folder,
        resume=options.resume,
        on_epoch=show_samples,
    )
    flow.save(folder / MODEL)
    nll = evaluate(flow, test, batch_size=experiment.batch_size)
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
    first_layer = flow.bijection.layers[0] if flow.bijection.layers else None
    if isinstance(first_layer, Logit) and flow.dequantizer is None:
        results |= in_logit_space(flow, test, nll, experiment.batch_size)
    results |= experiment.more(flow, test)
    draw_figures(folder, flow, history, epochs_shown, experiment)
    results |= experiment.draw(folder, flow, test)
    write_summary(folder, flow, options, results)
    print(experiment.reached, file=sys.stderr)  # stdout holds the summary alone


def load(
    flow: Flow, conditional: bool, integers: str, rows: tuple[int | None, int | None, int | None]
) -> tuple[Data, Data, Data]:
    """The first rows of the training, validation and test images, with their labels as context."""
    mnist = datasets.mnist()
    parts = (
        (mnist.train, mnist.train_labels),
        (mnist.validation, mnist.validation_labels),
        (mnist.test, mnist.test_labels),
    )
    one_hot = np.eye(DIGITS, dtype=np.float32)
    first, second, third = (
        Data.on(
            flow,
            images[:n].reshape(-1, *flow.shape),
            one_hot[labels[:n]] if conditional else None,
            integers,
        )
        for (images, labels), n in zip(parts, rows, strict=True)
    )
    return first, second, third


def in_logit_space(
    flow: Flow, test: Data, nll: np.ndarray, batch_size: int = EVALUATION_ROWS
) -> dict[str, float]:
    """The mean of log p(y), y = logit(x), as MAF's paper reports it: depends on the logit's lam.

    nll: by `evaluate` with this batch size, to have the same noise
    """
    log_det = np.empty(len(test.rows))
    for step, start in enumerate(range(0, len(test.rows), batch_size)):
        rows = slice(start, start + batch_size)
        batch, _ = test.batch(flow, rows, 0, step, Stream.DEQUANTIZE_EVALUATION)
        log_det[rows] = flow.backend.to_numpy(flow.bijection.layers[0].forward(batch)[1])
    return {
        "test_log_likelihood_in_logit_space": float((-nll - log_det).mean()),
        "test_log_likelihood_in_logit_space_standard_error": standard_error(-nll - log_det),
    }


def draw_figures(
    folder: Path,
    flow: Flow,
    history: list[dict],
    epochs_shown: list[int],
    experiment: Experiment,
) -> None:
    """The curve, a grid of samples, samples by temperature and over epochs, and interpolations.

    With digits as context, the rows of the grid are the digits.
    """
    key, name = ("nll", "nats") if experiment.unit == "nats" else ("bits_per_dim", "bits/dim")
    keys = {f"train_{key}": "training", f"validation_{key}": "validation"}
    plotting.curves(history, keys, folder / f"{key}.png", name, experiment.references)
    plotting.image_grid(samples(flow, 100, seed=0), folder / "samples.png")
    by_temperature = {f"T = {t}": samples(flow, 10, seed=0, temperature=t) for t in TEMPERATURES}
    plotting.image_rows(by_temperature, folder / "temperatures.png")
    files = {epoch: folder / f"samples-{epoch:03}.npy" for epoch in epochs_shown}
    over_epochs = {f"epoch {e}": np.load(file) for e, file in files.items() if file.is_file()}
    if over_epochs:
        plotting.image_rows(over_epochs, folder / "samples_over_epochs.png")
    if isinstance(flow.base, Autoregressive):
        return  # its latents are the image itself, or have a density of their own
    z = interpolated_latents(flow, seed=0)
    images = pixels(flow, flow.from_latent(z, digits(flow, len(z))))
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


def samples(flow: Flow, n: int, seed: int, temperature: float = 1.0) -> np.ndarray:
    """n samples as 8-bit pixels."""
    return pixels(flow, flow.sample(n, seed, temperature, digits(flow, n)))


def digits(flow: Flow, n: int) -> np.ndarray | None:
    """The context of n images, the same number of each digit in turn; None if there is none."""
    if not flow.context_features:
        return None
    return np.eye(DIGITS, dtype=flow.backend.dtype)[np.arange(n) * DIGITS // n]


def pixels(flow: Flow, x: Array) -> np.ndarray:
    """x, in [0, 256) or in {0, 1}, as 8-bit pixels, one row an image."""
    base = flow.base
    binary = isinstance(base, Autoregressive) and isinstance(base.conditional, Bernoulli)
    scaled = flow.backend.to_numpy(x).reshape(len(x), -1) * (255 if binary else 1)
    return np.clip(np.floor(scaled), 0, 255).astype(np.uint8)
