"""Glow on MNIST (28 x 28, 8 bits): actnorm, invertible 1x1 convolutions and couplings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import run
from image_figures import image_experiment
from mnist_common import ImageOptions, train_and_report

from npflow.models import GLOW_CONFIGURATIONS, glow

TRAINING: dict[str, dict[str, Any]] = {
    "affine": {
        "epochs": 12,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "warm_up_steps": 200,
        "schedule": "cosine",
        "average": 0.999,
        "max_norm": 50.0,
    },
}
REACHED = """Test bits/dim reached (experiments/results/README.md):
  --config affine   1.174, 1.157 with 8 draws of the noise  (12 epochs)"""
REFERENCES = {"Glow in later papers' tables: 1.05": 1.05}


@dataclass
class GlowOptions(ImageOptions):
    config: Literal["affine"] = "affine"
    """affine: the paper's structure, small."""


def main(options: GlowOptions) -> None:
    """Train Glow on MNIST; ends with test bits/dim and figures."""
    experiment = image_experiment(
        options,
        name="mnist_glow",
        build=glow,
        model=GLOW_CONFIGURATIONS[f"mnist-{options.config}"],
        training=TRAINING[options.config],
        references=REFERENCES,
        reached=REACHED,
        smoke={"width": 8, "steps": 1},
    )
    train_and_report(options, experiment)


if __name__ == "__main__":
    run(main, GlowOptions)
