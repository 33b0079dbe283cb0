"""RealNVP with dense couplings on MNIST (28 x 28, 8 bits, uniform dequantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import Options, run
from mnist_common import Experiment, train_and_report

from npflow.models import REALNVP_CONFIGURATIONS, realnvp

TRAINING: dict[str, dict[str, Any]] = {
    "uva": {"epochs": 12, "max_norm": 0.6},  # the assignment trains for 40
    "report": {"epochs": 40},
    "best": {"epochs": 30, "schedule": "cosine", "average": 0.999, "max_norm": 1.0},
}
REACHED = """Test bits/dim of longer runs (experiments/results/README.md):
  --config uva --epochs 40   1.795
  --config report            1.781  (40 epochs of a small model: the quickest)
  --config best              1.612  (30 epochs)"""
REFERENCES = {"UvA assignment, 40 epochs: 1.85": 1.85}


@dataclass
class RealNVPOptions(Options):
    config: Literal["uva", "report", "best"] = "uva"
    """uva: 8 couplings of 1024 x 1024; report: UCSD's 5 of 256 x 256, batch norm; best: ours."""


def main(options: RealNVPOptions) -> None:
    """Train RealNVP with dense couplings on MNIST; ends with test bits/dim and figures."""
    train_and_report(
        options,
        Experiment(
            "mnist_realnvp",
            realnvp,
            REALNVP_CONFIGURATIONS[f"mnist-{options.config}"],
            TRAINING[options.config],
            REFERENCES,
            REACHED,
        ),
    )


if __name__ == "__main__":
    run(main, RealNVPOptions)
