"""Masked autoregressive flow on MNIST, in the MAF paper's space: logit with lam = 1e-6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from common import Options, run
from mnist_common import DIGITS, EVALUATION_ROWS, Experiment, in_logit_space, train_and_report

from npflow import datasets
from npflow.flow import Flow
from npflow.metrics import standard_error
from npflow.models import MAF_CONFIGURATIONS, maf
from npflow.random import Stream
from npflow.training import Data, evaluate

TRAINING: dict[str, dict[str, Any]] = {
    "maf": {"epochs": 30, "batch_size": 100, "schedule": "cosine", "average": 0.999},
    "mog": {"epochs": 30, "batch_size": 100, "schedule": "cosine", "average": 0.999},
}
MODELS = {"maf": "mnist", "mog": "mnist-mog"}
REACHED = """Test log-likelihood in logit space reached (experiments/results/README.md):
  --config maf                 -1199.2 nats, 1.705 bits/dim  (30 epochs; the paper: -1300.5)
  --config maf --conditional   -1198.8 nats given the digit  (30 epochs)
  --config mog --epochs 12     -1021.4 nats, 1.378 bits/dim  (the paper: -1100.3)"""
# bits/dim = -log-likelihood / (784 ln 2) - 0.5017, from logit space with lam = 1e-6.
REFERENCES = {
    "maf": {"MAF paper: -1300.5 nats": 1.891},
    "mog": {"MAF paper: -1100.3 nats": 1.523},
}


@dataclass
class MAFOptions(Options):
    config: Literal["maf", "mog"] = "maf"
    """maf: 5 layers of 1024 x 1024; mog: the same over a MADE with 10 Gaussians a pixel."""
    conditional: bool = False
    """Condition on the digit."""


def main(options: MAFOptions) -> None:
    """Train MAF on MNIST; ends with test nats in logit space, bits/dim and figures."""
    model = dict(MAF_CONFIGURATIONS[MODELS[options.config]])
    if options.conditional:
        model |= {"context_features": DIGITS}
    train_and_report(
        options,
        Experiment(
            "mnist_maf",
            maf,
            model,
            TRAINING[options.config],
            REFERENCES[options.config],
            REACHED,
            options.conditional,
            more=more_results,
            smoke={"hidden": (32, 32), "batch_norm": False},
        ),
    )


def more_results(flow: Flow, test: Data) -> dict[str, Any]:
    """A Gaussian's log-likelihood in the same space, and p(x) of a conditional flow."""
    results: dict[str, Any] = {"gaussian_log_likelihood_in_logit_space": gaussian(flow, test)}
    if test.context is not None:
        nll = marginal_nll(flow, test)
        marginal = in_logit_space(flow, test, nll)
        results |= {f"marginal_{name}": value for name, value in marginal.items()}
    return results


def gaussian(flow: Flow, test: Data) -> dict[str, float]:
    """The test log-likelihood of one Gaussian with full covariance: is the space the paper's?

    The paper has -1366.9 +- 1.4 nats (arXiv:1705.07057, table 2).
    """
    mnist = datasets.mnist()
    logit, xp = flow.bijection.layers[0], flow.backend.to_numpy

    def latents(rows: Any, stream: Stream) -> np.ndarray:
        x, _ = Data(flow.backend.xp.asarray(rows)).batch(flow, slice(None), 0, 0, stream)
        return xp(logit.forward(x)[0]).astype(np.float64)

    y = latents(mnist.train, Stream.DEQUANTIZE)
    mean, covariance = y.mean(axis=0), np.cov(y, rowvar=False)
    lower = np.linalg.cholesky(covariance)
    standard = np.linalg.solve(lower, (latents(test.rows, Stream.DEQUANTIZE_EVALUATION) - mean).T)
    log_prob = -0.5 * (standard**2).sum(axis=0) - np.log(np.diag(lower)).sum()
    log_prob -= 0.5 * len(mean) * np.log(2 * np.pi)
    return {"mean": float(log_prob.mean()), "standard_error": float(standard_error(log_prob))}


def marginal_nll(flow: Flow, test: Data) -> np.ndarray:
    """-log p(x) = -log sum_y p(x | y) / 10, every digit y being as likely."""
    total = np.full(len(test.rows), -np.inf)
    for row in np.eye(DIGITS, dtype=flow.backend.dtype):
        context = flow.backend.xp.asarray(np.tile(row, (len(test.rows), 1)))
        given = Data(test.rows, context, test.integers)
        total = np.logaddexp(total, -evaluate(flow, given, batch_size=EVALUATION_ROWS))
    return np.log(DIGITS) - total


if __name__ == "__main__":
    run(main, MAFOptions)
