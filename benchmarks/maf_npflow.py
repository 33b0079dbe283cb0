"""Time npflow's MAF: a training step, density passes and sampling; and what to hold them against.

Arguments: features hidden layers batch steps loop counts...
    loop   : how many samples to draw by `features` passes a layer, too (0: none)
    counts : how many samples to draw in one pass, each beside density passes of as many rows

Prints JSON lines: npflow; npflow with dense networks of the same widths, whose density pass is the
unit that sampling is measured in; and npflow sampling as its peers do.
"""

import sys

import numpy as np
from peers.timing import median_ms, once_ms, report
from timing_npflow import time_flow

import npflow
from npflow.bijections import Bijection, Chain, MaskedAutoregressive, reverse
from npflow.distributions import StandardNormal
from npflow.elementwise import Affine
from npflow.models.maf import maf
from npflow.networks import MLP


class Dense(Bijection):
    """The forward pass of MaskedAutoregressive with an MLP of the same widths; for timing only."""

    def __init__(self, features: int, hidden: tuple[int, ...]):
        self.map = Affine(features, 2.0)
        outputs = features * self.map.parameters_per_feature
        self.network = MLP(features, hidden, outputs)

    def forward(self, x, context=None):
        params, _ = self.network.forward(x)
        return self.map.forward(x, params)


def main(
    features: int, hidden: int, layers: int, batch: int, steps: int, loop: int, *counts: int
) -> None:
    widths = (hidden, hidden)
    rng = np.random.default_rng(0)

    def rows(n: int) -> np.ndarray:
        return rng.normal(size=(n, features)).astype(np.float32)

    x = rows(batch)
    flow, result = time_flow(lambda: maf(features, layers, widths, backend="numpy"), x, steps)
    dense = dense_flow(features, layers, widths)
    dense_result = {}
    for n in counts:
        y = rows(n)
        result[f"sample_{n}_ms"] = median_ms(lambda n=n: flow.sample(n), steps)
        result[f"density_{n}_ms"] = median_ms(lambda y=y: flow.log_prob(y), steps)
        dense_result[f"density_{n}_ms"] = median_ms(lambda y=y: dense.log_prob(y), steps)
    report("npflow", **result)
    report("npflow, dense", **dense_result)
    if loop:
        z = rows(loop)
        found = []
        elapsed = once_ms(lambda: found.append(sample_by_passes(flow, z)))
        error = float(np.abs(found[0] - flow.from_latent(z)).max())
        report("npflow, D passes", **{f"sample_{loop}_ms": elapsed, "difference": error})


def dense_flow(features: int, layers: int, hidden: tuple[int, ...]) -> npflow.Flow:
    chain: list[Bijection] = []
    for k in range(layers):
        if k > 0:
            chain.append(reverse(features))
        chain.append(Dense(features, hidden))
    return npflow.Flow(StandardNormal(features), Chain(tuple(chain)), backend="numpy")


def sample_by_passes(flow: npflow.Flow, z: np.ndarray) -> np.ndarray:
    for layer in reversed(flow.bijection.layers):
        if isinstance(layer, MaskedAutoregressive):
            z = layer.inverse_by_passes(z)
        else:
            z, _, _ = layer.inverse(z)
    return z


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
