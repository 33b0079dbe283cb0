"""Short trainings of small flows, step by step beside the same ones on another backend."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npflow import optim
from npflow.backend import Array, Backend, get_backend
from npflow.flow import Flow
from npflow.models import glow, maf, realnvp

STEPS, WARM_UP = 20, 5  # the first steps compile kernels and fill the pool of memory
ROWS = 64
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-11}  # of losses, relative

FLOWS: dict[str, Callable[[Backend], Flow]] = {
    "RealNVP": lambda backend: realnvp(12, couplings=4, hidden=(32, 32), backend=backend),
    "MAF": lambda backend: maf(6, layers=2, hidden=(24, 24), batch_norm=True, backend=backend),
    "Glow": lambda backend: glow((8, 8, 1), steps=1, width=8, lam=None, backend=backend),
}


class Training(NamedTuple):
    """How a training went beside that of the other backend."""

    difference: float  # the largest relative difference of two losses
    tolerance: float
    seconds_per_step: float
    launches_per_step: float | None  # of npflow's own kernels; None where there is no device
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and self.difference <= self.tolerance


def other_backend(backend: Backend) -> Backend:
    """What losses are compared with: the `numpy` backend's, or for that the reference's."""
    return get_backend("reference" if backend.name == "numpy" else "numpy", backend.dtype)


def compare_training(backend: Backend, name: str) -> Training:
    """Train FLOWS[name] on both. Whatever a backend raises becomes the training's problem."""
    tolerance = TOLERANCE[backend.dtype]
    try:
        losses, seconds, launches = _train(FLOWS[name](backend))
        expected, _, _ = _train(FLOWS[name](other_backend(backend)))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        return Training(np.inf, tolerance, np.nan, None, problem)
    if not np.isfinite(losses).all():
        return Training(np.inf, tolerance, seconds, launches, f"the losses are {losses}")
    difference = float(np.max(np.abs(losses - expected) / np.abs(expected)))
    return Training(difference, tolerance, seconds, launches)


def _train(flow: Flow) -> tuple[np.ndarray, float, float | None]:
    """The losses (STEPS,), the seconds and the launches a step."""
    backend = flow.backend
    rows = np.random.default_rng(0).normal(size=(STEPS, ROWS, *flow.shape))
    batches = backend.array(np.sinh(rows) / 2)  # tails heavier than those of a Gaussian
    flow.initialize(batches[0])
    # Of a gradient that is nothing but rounding a smaller epsilon would make a whole step.
    adam = optim.Adam(flow.params, learning_rate=1e-2, epsilon=1e-3, max_norm=50.0)
    losses: list[Array] = []
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            float(losses[-1])  # waits for the device
            started, before = time.perf_counter(), _launches(backend)
        losses.append(flow.loss_and_grad(batch))
        adam.step()
    last = float(losses[-1])
    seconds = (time.perf_counter() - started) / (STEPS - WARM_UP)
    after = _launches(backend)
    launches = None if before is None or after is None else (after - before) / (STEPS - WARM_UP)
    return np.array([*(float(loss) for loss in losses[:-1]), last]), seconds, launches


def _launches(backend: Backend) -> int | None:
    """How many kernels of npflow's own were launched so far."""
    launch = getattr(backend.kernels, "launch", None)
    return None if launch is None else launch.Family.launches
