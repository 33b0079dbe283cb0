"""RealNVP on a two-dimensional toy density."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import run
from toy_common import ToyOptions, train_and_report

from npflow import plotting
from npflow.flow import Flow
from npflow.models import REALNVP_CONFIGURATIONS, realnvp

CONFIGURATIONS = {"toy": "toy", "report": "toy-report"}
TRAINING = {"epochs": 100, "batch_size": 256}


@dataclass
class RealNVPOptions(ToyOptions):
    config: Literal["toy", "report"] = "toy"
    """toy: 8 couplings of 64 x 64; report: UCSD's 5 of 32 x 32."""


def main(options: RealNVPOptions) -> None:
    """Train RealNVP on a 2-D toy density; ends with the test nll above its entropy, and figures."""
    model = dict(REALNVP_CONFIGURATIONS[CONFIGURATIONS[options.config]])
    if options.smoke:
        model |= {"hidden": (8, 8)}
    flow = realnvp(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)

    def draw(folder: Path, flow: Flow, train: np.ndarray) -> None:
        z = flow.base.sample(4000, options.seed)
        plotting.morph(walk(flow, z), quadrants(flow.backend.to_numpy(z)), folder / "morph.png")

    train_and_report(options, f"toy_realnvp_{options.dataset}", flow, TRAINING, draw)


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
    run(main, RealNVPOptions)
