"""Time a training step and a density pass of npflow's RealNVP.

Arguments: features hidden couplings batch steps.
Prints one JSON line: times of a step and its parts, of a density pass, and of the first step.
"""

import json
import statistics
import sys
import time

import numpy as np

import npflow
from npflow.optim import Adam


def main(features: int, hidden: int, couplings: int, batch: int, steps: int) -> None:
    x = np.random.default_rng(0).normal(size=(batch, features)).astype(np.float32)
    start = time.perf_counter()
    flow = npflow.models.realnvp(
        features, couplings, (hidden, hidden), learn_bound=False, backend="numpy"
    )
    adam = Adam(flow.params, 1e-4)

    def step() -> None:
        flow.loss_and_grad(x)
        adam.step()

    step()
    first = time.perf_counter() - start
    result = {
        "system": "npflow",
        "parameters": flow.params.count,
        "step_ms": median_ms(step, steps),
        "clear_gradients_ms": median_ms(flow.params.zero_grads, steps),
        "gradient_ms": median_ms(lambda: flow.loss_and_grad(x), steps),
        "adam_ms": median_ms(adam.step, steps),
        "density_ms": median_ms(lambda: flow.log_prob(x), steps),
        "first_step_s": first,
    }
    print(json.dumps(result), flush=True)


def median_ms(function, repetitions: int) -> float:
    for _ in range(3):
        function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
