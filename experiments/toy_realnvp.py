"""RealNVP on a two-dimensional toy density."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import MODEL, Options, make_folder, run, write_summary

from npflow import plotting
from npflow.datasets import TOYS, toy, toy_entropy
from npflow.flow import Flow
from npflow.metrics import standard_error
from npflow.models import REALNVP_CONFIGURATIONS, realnvp
from npflow.training import TrainingOptions, evaluate, fit

CONFIGURATIONS = {"toy": "toy", "report": "toy-report"}
# Points of the training, validation and test set, each drawn from a seed of its own.
POINTS = (50_000, 20_000, 200_000)
SMOKE_POINTS = (500, 500, 500)
INTEGRATION_SIZE = 1500  # cells on a side of the grid that the density is integrated over


@dataclass
class ToyOptions(Options):
    dataset: Literal[*TOYS] = "two_moons"
    """The density to draw the points from."""
    config: Literal["toy", "report"] = "toy"
    """toy: 8 couplings of 64 x 64; report: UCSD's 5 of 32 x 32."""


def main(options: ToyOptions) -> None:
    """Train RealNVP on a 2-D toy density; ends with the test nll above its entropy, and figures."""
    folder = make_folder(options, f"toy_realnvp_{options.dataset}")
    model = dict(REALNVP_CONFIGURATIONS[CONFIGURATIONS[options.config]])
    if options.smoke:
        model |= {"hidden": (8, 8)}
    sizes = SMOKE_POINTS if options.smoke else POINTS
    train, validation, test = (toy(options.dataset, n, seed) for seed, n in enumerate(sizes))
    flow = realnvp(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)
    training = TrainingOptions(
        epochs=options.epochs or (3 if options.smoke else 100),
        batch_size=256,
        learning_rate=2e-3,
        schedule="cosine",
        max_norm=5.0,
        average=0.999,
        memory=options.memory,
        seed=options.seed,
    )
    history = fit(flow, train, validation, options=training, out=folder, resume=options.resume)
    flow.save(folder / MODEL)

    nll = evaluate(flow, test)
    entropy = toy_entropy(options.dataset)
    size = 100 if options.smoke else INTEGRATION_SIZE
    # Wide enough for the model's own tails, which may reach further than the data's.
    samples = flow.backend.to_numpy(flow.sample(100_000, seed=options.seed))
    extent = plotting.surrounding(np.concatenate([train, samples]))
    probability = plotting.integral(np.exp(plotting.grid_log_prob(flow, extent, size)), extent)
    results = {
        "dataset": options.dataset,
        "test_nll": float(nll.mean()),
        "test_nll_standard_error": standard_error(nll),
        "entropy": entropy,
        "gap": None if entropy is None else float(nll.mean()) - entropy,
        "integral": probability,
        "integral_extent": extent,
        "integral_cells": size * size,
        "epochs": history[-1]["epoch"],
        "steps": history[-1]["step"],
        "seconds": history[-1]["seconds"],
        "training": dataclasses.asdict(training),
    }
    draw_figures(folder, flow, history, train, entropy, options.seed)
    write_summary(folder, flow, options, results)


def draw_figures(
    folder: Path,
    flow: Flow,
    history: list[dict],
    train: np.ndarray,
    entropy: float | None,
    seed: int,
) -> None:
    """The curve, the density beside the data, and the walk from latents to data."""
    keys = {"train_nll": "training", "validation_nll": "validation, averaged weights"}
    references = None if entropy is None else {f"entropy: {entropy:.4f}": entropy}
    plotting.curves(
        history, keys, folder / "curve.png", "negative log-likelihood (nats)", references
    )
    plotting.density(flow, train, folder / "density.png", seed=seed)
    z = flow.base.sample(4000, seed)
    plotting.morph(walk(flow, z), quadrants(flow.backend.to_numpy(z)), folder / "morph.png")


def walk(flow: Flow, z: Any) -> list[tuple[str, np.ndarray]]:
    """The latents, and the points after undoing each coupling, the last one first."""
    stages = [("latents", flow.backend.to_numpy(z))]
    for k, layer in reversed(list(enumerate(flow.bijection.layers, start=1))):
        z, _, _ = layer.inverse(z)
        title = f"coupling {k} undone" if k > 1 else "samples"
        stages.append((title, flow.backend.to_numpy(z)))
    return stages


def quadrants(z: np.ndarray) -> np.ndarray:
    """0..3: which quadrant each latent lies in."""
    return 2 * (z[:, 1] < 0) + (z[:, 0] < 0)


if __name__ == "__main__":
    run(main, ToyOptions)
