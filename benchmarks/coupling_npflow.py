"""Time a training step and a density pass of npflow's RealNVP.

Arguments: features hidden couplings batch steps.
Prints one JSON line: times of a step and its parts, of a density pass, and of the first step.
"""

import sys

import numpy as np
from peers.timing import report
from timing_npflow import time_flow

import npflow


def main(features: int, hidden: int, couplings: int, batch: int, steps: int) -> None:
    x = np.random.default_rng(0).normal(size=(batch, features)).astype(np.float32)

    def build() -> npflow.Flow:
        return npflow.models.realnvp(
            features, couplings, (hidden, hidden), learn_bound=False, backend="numpy"
        )

    _, result = time_flow(build, x, steps)
    report("npflow", **result)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
