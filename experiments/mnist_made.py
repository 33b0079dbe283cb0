"""MADE on MNIST: binary (Bernoulli) or grey values (Gaussian, or a mixture of Gaussians)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from common import Options, run
from mnist_common import DIGITS, EVALUATION_ROWS, Experiment, train_and_report

from npflow.flow import Flow
from npflow.metrics import standard_error
from npflow.models import MADE_CONFIGURATIONS, ensemble_log_prob, made
from npflow.random import Stream
from npflow.training import Data

BINARY: dict[str, Any] = {
    "batch_size": 100, "schedule": "cosine", "average": 0.999, "integers": "binarize",
}  # fmt: skip
GREY: dict[str, Any] = {"batch_size": 100, "schedule": "cosine", "average": 0.999}
TRAINING: dict[str, dict[str, Any]] = {
    "binary": BINARY | {"epochs": 40},
    "agnostic": BINARY | {"epochs": 100},
    "gaussian": GREY | {"epochs": 30},
    "mixture": GREY | {"epochs": 40},
}
REACHED = """Test nats reached (experiments/results/README.md):
  --config binary       93.0  (40 epochs)
  --config agnostic     93.3; 90.5 for the ensemble of 8 masks  (100 epochs)
  --config gaussian  -1291.2 in logit space  (30 epochs; the MAF paper: -1380.8)
  --config mixture   -1031.8 in logit space  (40 epochs; the MAF paper: -1038.5)"""
# Nats for binary images; else bits/dim, from nats in logit space with lam = 1e-6 as in mnist_maf.
PUBLISHED = {"MADE 1 x 500, one order, static binarization: 94.5": 94.5}
REFERENCES = {
    "binary": PUBLISHED,
    "agnostic": PUBLISHED,
    "gaussian": {"MAF paper: -1380.8 nats": 2.039},
    "mixture": {"MAF paper: -1038.5 nats": 1.409},
}


@dataclass
class MADEOptions(Options):
    config: Literal["binary", "agnostic", "gaussian", "mixture"] = "binary"
    """binary: 1 x 500 with one random order; agnostic: with 8 orders and masks in turn, direct
    links, and their ensemble; gaussian, mixture: grey values, 2 x 1024."""
    conditional: bool = False
    """Condition on the digit."""


def main(options: MADEOptions) -> None:
    """Train MADE on MNIST; ends with test nats (binary) or bits/dim, and figures."""
    model = dict(MADE_CONFIGURATIONS[f"mnist-{options.config}"])
    if options.conditional:
        model |= {"context_features": DIGITS}
    train_and_report(
        options,
        Experiment(
            "mnist_made",
            made,
            model,
            TRAINING[options.config],
            REFERENCES[options.config],
            REACHED,
            options.conditional,
            "nats" if "integers" in TRAINING[options.config] else "bits/dim",
            more_results if model.get("masks", 1) > 1 else lambda flow, test: {},
        ),
    )


def more_results(flow: Flow, test: Data) -> dict[str, Any]:
    """The ensemble's test nll over 1, 2, 4, ... masks, up to all."""
    sizes = [2**k for k in range(flow.base.network.masks.bit_length())]
    nll: dict[int, list[np.ndarray]] = {n: [] for n in sizes}
    for step, start in enumerate(range(0, len(test.rows), EVALUATION_ROWS)):
        rows = slice(start, start + EVALUATION_ROWS)
        x, context = test.batch(flow, rows, 0, step, Stream.DEQUANTIZE_EVALUATION)
        for n in sizes:
            nll[n].append(-ensemble_log_prob(flow, x, n, context))
    means = {n: np.concatenate(parts) for n, parts in nll.items()}
    return {
        "ensemble_test_nll": {str(n): float(values.mean()) for n, values in means.items()},
        "ensemble_test_nll_standard_error": float(standard_error(means[sizes[-1]])),
    }


if __name__ == "__main__":
    run(main, MADEOptions)
