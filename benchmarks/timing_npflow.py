"""Time an npflow flow: a training step and its parts, a density pass, the first step,
and page faults."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
from peers.timing import median_ms

from npflow import Flow
from npflow.optim import Adam


def training_step(
    flow: Flow, adam: Adam, x: np.ndarray, memory: str = "store"
) -> Callable[[], None]:
    """A function that makes one step of Adam."""

    def step() -> None:
        flow.loss_and_grad(x, memory=memory)
        adam.step()

    return step


def page_faults(step: Callable[[], None], steps: int) -> float:
    """Pages of memory that the system had to provide a step: none if all memory is used again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def time_flow(build: Callable[[], Flow], x: np.ndarray, steps: int) -> tuple[Flow, dict]:
    """The flow that build made, trained a little, and its timings."""
    start = time.perf_counter()
    flow = build()
    adam = Adam(flow.params, 1e-4)
    step = training_step(flow, adam, x)
    step()
    first = time.perf_counter() - start
    result = {
        "parameters": flow.params.count,
        "step_ms": median_ms(step, steps),
        "clear_gradients_ms": median_ms(flow.params.zero_grads, steps),
        "gradient_ms": median_ms(lambda: flow.loss_and_grad(x), steps),
        "adam_ms": median_ms(adam.step, steps),
        "density_ms": median_ms(lambda: flow.log_prob(x), steps),
        "first_step_s": first,
        "page_faults_a_step": page_faults(step, steps),
    }
    return flow, result
