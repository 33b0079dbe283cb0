"""NICE on MNIST (28 x 28, 8 bits, uniform dequantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import Options, run
from mnist_common import train_and_report

from npflow.models import NICE_CONFIGURATIONS, nice
from npflow.training import TrainingOptions

TRAINING: dict[str, dict[str, Any]] = {
    "report": {"epochs": 40, "schedule": "cosine", "average": 0.999},
    "paper": {"epochs": 80, "batch_size": 200, "schedule": "cosine", "average": 0.999},
}
# 1980.50 nats in [0, 1]^784 are 8 - 1980.50 / (784 ln 2) bits/dim.
REFERENCES = {"Dinh et al., 1500 epochs: 4.36": 4.356}


@dataclass
class NICEOptions(Options):
    config: Literal["report", "paper"] = "report"
    """report: 6 additive couplings of 256 x 256; paper: Dinh et al.'s 4 couplings of 5 x 1000."""


def main(options: NICEOptions) -> None:
    """Train NICE on MNIST; ends with test bits/dim and figures."""
    model = dict(NICE_CONFIGURATIONS[f"mnist-{options.config}"])
    training = dict(TRAINING[options.config])
    if options.smoke:
        model |= {"hidden": (32, 32)}
        training |= {"epochs": 2}
    if options.epochs is not None:
        training |= {"epochs": options.epochs}
    flow = nice(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)
    train_and_report(
        options,
        "mnist_nice",
        flow,
        TrainingOptions(**training, memory=options.memory, seed=options.seed),
        REFERENCES,
    )


if __name__ == "__main__":
    run(main, NICEOptions)
