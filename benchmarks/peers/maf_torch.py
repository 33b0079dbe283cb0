"""Time MAF of the same size in zuko and nflows.

Arguments: features hidden layers batch steps count, where count is how many samples to draw (0:
none), which takes these libraries `features` passes. Prints one JSON line a system.
"""

import sys

import torch
from timing_torch import time_flow

FEATURES, HIDDEN, LAYERS, BATCH, STEPS, COUNT = map(int, sys.argv[1:])
torch.manual_seed(0)
x = torch.randn(BATCH, FEATURES)


def zuko():
    import zuko

    model = zuko.flows.MAF(FEATURES, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN))
    time_flow(
        "zuko", lambda x: model().log_prob(x), model.parameters(), x, STEPS,
        lambda n: model().sample((n,)), COUNT,
    )  # fmt: skip


def nflows():
    from nflows import distributions, flows, transforms

    layers = []
    for k in range(LAYERS):
        if k > 0:
            layers.append(transforms.ReversePermutation(FEATURES))
        layers.append(
            transforms.MaskedAffineAutoregressiveTransform(
                FEATURES,
                HIDDEN,
                num_blocks=1,  # after a first hidden layer that is always there: two in all
                use_residual_blocks=False,
            )
        )
    model = flows.Flow(
        transforms.CompositeTransform(layers), distributions.StandardNormal([FEATURES])
    )
    time_flow("nflows", model.log_prob, model.parameters(), x, STEPS, model.sample, COUNT)


zuko()
nflows()
