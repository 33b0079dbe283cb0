"""MAF by maximum likelihood and IAF by reverse KL on the same two-dimensional density."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import reverse_kl
from common import MODEL, make_folder, run, write_summary
from toy_common import ToyOptions, draw_curve, judge, points, training_options

from npflow import plotting
from npflow.backend import Array
from npflow.datasets import toy_entropy
from npflow.flow import Flow
from npflow.metrics import standard_error
from npflow.models import MAF_CONFIGURATIONS, iaf, maf
from npflow.training import fit

IAF = "iaf.safetensors"
# Bounds that start at 2 leave MAF 0.068 nats above the entropy of eight_gaussians, not 0.048.
NETWORKS = MAF_CONFIGURATIONS["toy"] | {"bound": 1.0}
TRAINING = {"epochs": 100, "batch_size": 256}
IAF_EPOCHS = 150  # of reverse_kl.STEPS_PER_EPOCH steps
CELLS = 300  # on a side of a drawn density
SHOWN = 5000


@dataclass
class MAFIAFOptions(ToyOptions):
    """Those of every experiment; --resume goes on with MAF, and trains IAF anew."""

    dataset: Literal["eight_gaussians", "parabola"] = "eight_gaussians"
    """The density, which is known: one with modes, or one that is bent."""


def eight_gaussians(x: Array) -> tuple[Array, Array]:
    """log p (B,) and its gradient (B, 2) of npflow.datasets.eight_gaussians.

    p(x) = 1/8 sum_k N(x; c_k, s^2),   d log p / dx = sum_k r_k (c_k - x) / s^2,   s = 0.5 / 1.414

    with r_k the share of mode k in p(x), the softmax of -|x - c_k|^2 / (2 s^2).
    """
    variance = (0.5 / 1.414) ** 2
    angle = np.arange(8, dtype=x.dtype, like=x) * (math.pi / 4)
    centres = 4 / 1.414 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    towards = centres - x[:, None]  # (B, 8, 2)
    exponents = (towards**2).sum(axis=2) / (-2 * variance)
    largest = exponents.max(axis=1, keepdims=True)
    shares = np.exp(exponents - largest)
    total = shares.sum(axis=1, keepdims=True)
    shares /= total
    log_p = (largest + np.log(total))[:, 0] - math.log(8 * 2 * math.pi * variance)
    return log_p, (shares[:, :, None] * towards).sum(axis=1) / variance


def parabola(x: Array) -> tuple[Array, Array]:
    """log p (B,) and its gradient (B, 2) of npflow.datasets.parabola.

    With u = 40 x and r = u_1 - u_2^2 / 4:  log p = -r^2 / 2 - u_2^2 / 32 - log(8 pi) + 2 log 40.
    """
    u1, u2 = 40 * x[:, 0], 40 * x[:, 1]
    r = u1 - u2**2 / 4
    log_p = -(r**2) / 2 - u2**2 / 32 - math.log(8 * math.pi) + 2 * math.log(40)
    return log_p, 40 * np.stack([-r, r * u2 / 2 - u2 / 16], axis=1)


TARGETS: dict[str, reverse_kl.Target] = {"eight_gaussians": eight_gaussians, "parabola": parabola}


def main(options: MAFIAFOptions) -> None:
    """Fit MAF to points and IAF to the log-density that they are of; ends with both KLs of both.

    KL(p || q) punishes q for what it leaves out, KL(q || p) for what it adds: of a density with
    modes the former's minimum covers them all, the latter's may seek some.
    """
    folder = make_folder(options, f"toy_maf_iaf_{options.dataset}")
    target = TARGETS[options.dataset]
    networks = NETWORKS | ({"hidden": (8, 8)} if options.smoke else {})
    backend = {"backend": options.backend, "dtype": options.dtype, "seed": options.seed}

    by_likelihood = maf(**networks, **backend)
    train, validation, test = points(options)
    settings = training_options(options, **TRAINING)
    history = fit(
        by_likelihood, train, validation, options=settings, out=folder, resume=options.resume
    )
    by_likelihood.save(folder / MODEL)

    by_reverse_kl = iaf(**networks, **backend)
    epochs = options.epochs or (1 if options.smoke else IAF_EPOCHS)
    started = time.perf_counter()
    iaf_history = reverse_kl.train(by_reverse_kl, target, options, epochs)
    seconds = time.perf_counter() - started
    by_reverse_kl.save(folder / IAF)

    results = judge(options, by_likelihood, train, test) | {
        "epochs": history[-1]["epoch"],
        "steps": history[-1]["step"],
        "seconds": history[-1]["seconds"],
        "training": dataclasses.asdict(settings),
        "maf": divergences(by_likelihood, target, test, options.seed),
        "iaf": divergences(by_reverse_kl, target, test, options.seed)
        | {
            "epochs": epochs,
            "steps": epochs * reverse_kl.STEPS_PER_EPOCH,
            "seconds": round(seconds, 3),
        },
    }
    draw_curve(folder, history, toy_entropy(options.dataset))
    plotting.curves(iaf_history, {"kl": "training"}, folder / "iaf_curve.png", "KL(q || p) (nats)")
    draw_densities(folder, target, by_likelihood, by_reverse_kl, test, options.seed)
    write_summary(folder, by_likelihood, options, results)


def divergences(
    flow: Flow, target: reverse_kl.Target, test: np.ndarray, seed: int
) -> dict[str, float]:
    """KL(p || q) on the test points, KL(q || p) and importance weights on samples of q."""
    x = flow.backend.array(test)
    log_ratio = flow.backend.to_numpy(target(x)[0] - flow.log_prob(x)).astype(np.float64)
    return {
        "forward_kl": float(log_ratio.mean()),
        "forward_kl_standard_error": standard_error(log_ratio),
    } | reverse_kl.judge(flow, target, seed + 1)


def draw_densities(
    folder: Path,
    target: reverse_kl.Target,
    by_likelihood: Flow,
    by_reverse_kl: Flow,
    test: np.ndarray,
    seed: int,
) -> None:
    """densities.png: the target beside both flows."""
    extent = plotting.surrounding(test[:SHOWN])
    cells = plotting.grid(extent, CELLS)
    panels: dict[str, Any] = {
        "target": (np.exp(target(cells)[0]).reshape(CELLS, CELLS), test[:SHOWN])
    }
    flows = {"MAF, maximum likelihood": by_likelihood, "IAF, reverse KL": by_reverse_kl}
    for title, flow in flows.items():
        density = np.exp(plotting.grid_log_prob(flow, extent, CELLS))
        panels[title] = density, flow.backend.to_numpy(flow.sample(SHOWN, seed))
    plotting.densities(panels, folder / "densities.png", extent)


if __name__ == "__main__":
    run(main, MAFIAFOptions)
