"""NICE on MNIST (28 x 28, 8 bits, uniform dequantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import Options, run
from mnist_common import Experiment, train_and_report

from npflow.models import NICE_CONFIGURATIONS, nice

TRAINING: dict[str, dict[str, Any]] = {
    "report": {"epochs": 40, "schedule": "cosine", "average": 0.999},
    "paper": {"epochs": 80, "batch_size": 200, "schedule": "cosine", "average": 0.999},
}
REACHED = """Test bits/dim reached (experiments/results/README.md):
  --config report   4.859  (40 epochs)
  --config paper    4.919  (80 epochs; the paper: 4.356 after 1500)"""
# 1980.50 nats in [0, 1]^784 are 8 - 1980.50 / (784 ln 2) bits/dim.
REFERENCES = {"Dinh et al., 1500 epochs: 4.36": 4.356}


@dataclass
class NICEOptions(Options):
    config: Literal["report", "paper"] = "report"
    """report: 6 additive couplings of 256 x 256; paper: Dinh et al.'s 4 couplings of 5 x 1000."""


def main(options: NICEOptions) -> None:
    """Train NICE on MNIST; ends with test bits/dim and figures."""
    train_and_report(
        options,
        Experiment(
            "mnist_nice",
            nice,
            NICE_CONFIGURATIONS[f"mnist-{options.config}"],
            TRAINING[options.config],
            REFERENCES,
            REACHED,
        ),
    )


if __name__ == "__main__":
    run(main, NICEOptions)
