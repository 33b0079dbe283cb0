"""RealNVP with convolutions on several scales, on MNIST (28 x 28, 8 bits)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import run
from image_figures import image_experiment
from mnist_common import ImageOptions, train_and_report

from npflow.models import REALNVP_MULTISCALE_CONFIGURATIONS, realnvp_multiscale

TRAINING: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 20, "schedule": "cosine", "average": 0.999, "max_norm": 50.0},
    "uva": {"epochs": 10, "schedule": "cosine", "average": 0.999, "max_norm": 50.0},
    "spline": {
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "warm_up_steps": 200,
        "schedule": "cosine",
        "average": 0.999,
        "max_norm": 50.0,
    },
}
REACHED = """Test bits/dim reached (experiments/results/README.md):
  --config spline   1.026, 1.016 with 8 draws of the noise  (30 epochs)"""
REFERENCES = {
    "UvA tutorial, one scale, 200 epochs: 1.078": 1.078,
    "UvA tutorial, multi-scale, 200 epochs: 1.020": 1.020,
}


@dataclass
class RealNVPMultiscaleOptions(ImageOptions):
    config: Literal["spline", "paper", "uva"] = "spline"
    """spline: ours; paper: RealNVP's structure; uva: gated residual networks."""


def main(options: RealNVPMultiscaleOptions) -> None:
    """Train multi-scale RealNVP on MNIST; ends with test bits/dim and figures."""
    model = REALNVP_MULTISCALE_CONFIGURATIONS[f"mnist-{options.config}"]
    fewer = {k: tuple(min(n, 1) for n in model[k]) for k in ("checkerboards", "channels")}
    experiment = image_experiment(
        options,
        name="mnist_realnvp_multiscale",
        build=realnvp_multiscale,
        model=model,
        training=TRAINING[options.config],
        references=REFERENCES,
        reached=REACHED,
        smoke=fewer | {"width": 4},
    )
    train_and_report(options, experiment)


if __name__ == "__main__":
    run(main, RealNVPMultiscaleOptions)
