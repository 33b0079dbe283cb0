"""RealNVP fitted to an unnormalised density by reverse KL, without any data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import reverse_kl
from common import MODEL, Options, make_folder, run, write_summary

from npflow import plotting
from npflow.backend import Array
from npflow.errors import ConfigurationError
from npflow.models import REALNVP_CONFIGURATIONS, realnvp

EXTENT = (-4.0, 4.0, -4.0, 4.0)  # the target's mass outside it is below 1e-7


@dataclass
class EnergyOptions(Options):
    """The options of every experiment; an epoch is 100 steps of 512 samples."""

    resumable: ClassVar[bool] = False


def log_target(x: Array) -> tuple[Array, Array]:
    """-U(x), (B,), and its gradient (B, 2): a ring of radius 2 with two heavy sides.

    U(x) = ((|x| - 2) / 0.4)^2 / 2 - log(e^{-(x_1 - 2)^2 / 0.72} + e^{-(x_1 + 2)^2 / 0.72})

    U_1 of arXiv:1505.05770, table 1. The log of the sum is -(x_1^2 + 4) / 0.72 + log 2 cosh(a) with
    a = 2 x_1 / 0.36, and log 2 cosh(a) = |a| + log(1 + e^{-2 |a|}), so nothing overflows.
    """
    radius = np.sqrt((x * x).sum(axis=1))
    ring = (radius - 2) / 0.4
    a = 2 * x[:, 0] / 0.36
    log_cosh = abs(a) + np.log1p(np.exp(-2 * abs(a)))
    log_p = -0.5 * ring**2 - (x[:, 0] ** 2 + 4) / 0.72 + log_cosh
    gradient = x * (-ring / 0.4 / np.maximum(radius, 1e-6))[:, None]
    gradient[:, 0] += (2 * np.tanh(a) - x[:, 0]) / 0.36
    return log_p, gradient


def main(options: EnergyOptions) -> None:
    """Fit RealNVP to a 2-D energy by reverse KL; ends with KL(q || p) and importance weights."""
    if options.resume:
        raise ConfigurationError("toy_energy is short and cannot be resumed; start anew")
    folder = make_folder(options, "toy_energy")
    # With a wider bound a few samples get nearly all of the importance weight.
    model = REALNVP_CONFIGURATIONS["toy"] | {"bound": 1.0}
    if options.smoke:
        model |= {"hidden": (8, 8)}
    flow = realnvp(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)
    cells = plotting.grid(EXTENT, 1000)
    target = np.exp(log_target(cells)[0]).reshape(1000, 1000)
    log_normalizer = math.log(plotting.integral(target, EXTENT))

    epochs = options.epochs or (1 if options.smoke else 80)
    started = time.perf_counter()
    history = reverse_kl.train(flow, log_target, options, epochs, log_normalizer)
    seconds = time.perf_counter() - started
    flow.save(folder / MODEL)

    results = reverse_kl.judge(flow, log_target, options.seed + 1, log_normalizer) | {
        "log_normalizer": log_normalizer,
        "epochs": epochs,
        "steps": epochs * reverse_kl.STEPS_PER_EPOCH,
        "seconds": round(seconds, 3),
    }
    plotting.curves(history, {"kl": "training"}, folder / "curve.png", "KL(q || p) (nats)")
    plotting.density(
        flow, lambda x: log_target(x)[0], folder / "density.png", extent=EXTENT, seed=options.seed
    )
    write_summary(folder, flow, options, results)


if __name__ == "__main__":
    run(main, EnergyOptions)
