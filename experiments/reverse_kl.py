"""Fitting a flow to a log-density by reverse KL, and judging it; shared by experiments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from common import Options
from tqdm import tqdm

from npflow import optim
from npflow.backend import Array
from npflow.flow import Flow
from npflow.metrics import standard_error

STEPS_PER_EPOCH = 100
BATCH_SIZE = 512
FRESH = 200_000  # samples to judge by

Target = Callable[[Array], tuple[Array, Array]]  # x -> log p up to a constant, its gradient


def train(
    flow: Flow, target: Target, options: Options, epochs: int, log_normalizer: float = 0.0
) -> list[dict]:
    """Adam with a cosine schedule; the flow ends with the average of its weights.

    Returns KL(q || p) of every epoch, on its own samples.
    """
    adam = optim.Adam(flow.params, 2e-3, max_norm=5.0)
    average = optim.WeightAverage(flow.params, 0.999)
    schedule = optim.cosine(epochs * STEPS_PER_EPOCH)
    history = []
    for epoch in tqdm(range(epochs), unit="epoch", dynamic_ncols=True):
        kl = 0.0
        for step in range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH):
            loss = flow.reverse_kl_and_grad(
                target, BATCH_SIZE, options.seed, step, memory=options.memory
            )
            kl += (loss + log_normalizer) / STEPS_PER_EPOCH
            adam.step(schedule(step))
            average.update(step + 1)
        history.append({"epoch": epoch + 1, "kl": kl})
    average.swap()
    return history


def judge(flow: Flow, target: Target, seed: int, log_normalizer: float = 0.0) -> dict[str, float]:
    """KL(q || p) and the importance weights p / q on fresh samples of q, the flow."""
    x, log_q = flow.sample_and_log_prob(FRESH, seed=seed)
    log_p, _ = target(x)
    log_weight = flow.backend.to_numpy(log_p - log_q).astype(np.float64) - log_normalizer
    weight = np.exp(log_weight)
    return {
        "reverse_kl": float(-log_weight.mean()),
        "reverse_kl_standard_error": standard_error(log_weight),
        # The importance-sampling estimate of the normalizer, relative to the one given.
        "log_normalizer_error": float(np.log(weight.mean())),
        "effective_sample_size": float(weight.sum() ** 2 / (weight**2).sum() / len(weight)),
        "samples": len(weight),
    }
