"""RealNVP with dense couplings on MNIST (28 x 28, 8 bits, uniform dequantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import Options, run
from mnist_common import train_and_report

from npflow.models import REALNVP_CONFIGURATIONS, realnvp
from npflow.training import TrainingOptions

TRAINING: dict[str, dict[str, Any]] = {
    # 12 epochs take about ten minutes on two cores; the UvA assignment trains for 40.
    "uva": {"epochs": 12, "max_norm": 0.6},
    "report": {"epochs": 40, "learning_rate": 1e-3},
    "best": {"epochs": 30, "schedule": "cosine", "average": 0.999, "max_norm": 1.0},
}
REFERENCES = {"UvA assignment, 40 epochs: 1.85": 1.85}


@dataclass
class RealNVPOptions(Options):
    config: Literal["uva", "report", "best"] = "uva"
    """uva: 8 couplings of 1024 x 1024; report: UCSD's 5 of 256 x 256, batch norm; best: ours."""


def main(options: RealNVPOptions) -> None:
    """Train RealNVP with dense couplings on MNIST; ends with test bits/dim and figures."""
    model = dict(REALNVP_CONFIGURATIONS[f"mnist-{options.config}"])
    training = dict(TRAINING[options.config])
    if options.smoke:
        model |= {"hidden": (32, 32)}
        training |= {"epochs": 2}
    if options.epochs is not None:
        training |= {"epochs": options.epochs}
    flow = realnvp(**model, backend=options.backend, dtype=options.dtype, seed=options.seed)
    train_and_report(
        options,
        "mnist_realnvp",
        flow,
        TrainingOptions(**training, memory=options.memory, seed=options.seed),
        REFERENCES,
    )


if __name__ == "__main__":
    run(main, RealNVPOptions)
