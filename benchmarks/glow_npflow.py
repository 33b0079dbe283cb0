"""Time npflow's Glow of 28 x 28 images, or measure the memory of its training step.

Arguments: what width depth batch repetitions [schedule]
    what     : time or memory
    depth    : steps of flow on each of the two scales
    schedule : for memory: store, recompute or invert

Prints one JSON line: times of a step and its parts, of a density pass, of sampling and of the first
step; or the peak memory and the time of a step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from peers.peak_memory import peak_memory
from peers.timing import median_ms, report
from timing_npflow import time_flow, training_step

import npflow
from npflow.optim import Adam


def glow(width: int, depth: int) -> npflow.Flow:
    return npflow.models.glow(
        (28, 28, 1), 2, depth, width, learned_prior=False, lam=None, backend="numpy"
    )


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 28, 28, 1), dtype=np.float32)


def time_all(width: int, depth: int, batch: int, repetitions: int) -> None:
    flow, result = time_flow(lambda: glow(width, depth), images(batch), repetitions)
    result[f"sample_{batch}_ms"] = median_ms(lambda: flow.sample(batch), repetitions)
    report("npflow", **result)


def measure_memory(width: int, depth: int, batch: int, repetitions: int, schedule: str) -> None:
    def build(depth: int, batch: int) -> tuple[int, Callable[[], None]]:
        flow = glow(width, depth)
        step = training_step(flow, Adam(flow.params, 1e-4), images(batch), schedule)
        return flow.params.count, step

    numbers = peak_memory(build, depth, batch, lambda step: median_ms(step, repetitions))
    report(f"npflow, {schedule}", **numbers)


if __name__ == "__main__":
    what, *sizes = sys.argv[1:]
    {"time": time_all, "memory": measure_memory}[what](*map(int, sizes[:4]), *sizes[4:])
