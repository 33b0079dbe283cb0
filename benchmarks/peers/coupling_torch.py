"""Time RealNVP of the same size in PyTorch (eager and compiled), normflows, nflows and zuko.

Arguments: features hidden couplings batch steps. Prints one JSON line a system.
"""

import sys

import torch
from timing_torch import time_flow

FEATURES, HIDDEN, COUPLINGS, BATCH, STEPS = map(int, sys.argv[1:])
HALF = FEATURES // 2
REST = FEATURES - HALF
torch.manual_seed(0)
x = torch.randn(BATCH, FEATURES)


class MLP(torch.nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(
            torch.nn.Linear(inputs, HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, outputs),
        )

    def forward(self, x, context=None):
        return super().forward(x)


class RealNVP(torch.nn.Module):
    """As an expert would write it by hand."""

    def __init__(self):
        super().__init__()
        self.networks = torch.nn.ModuleList([MLP(HALF, 2 * REST) for _ in range(COUPLINGS)])

    def forward(self, x):
        log_det = 0.0
        a, b = x[:, :HALF], x[:, HALF:]
        for network in self.networks:
            shift, raw = network(a).chunk(2, dim=1)
            log_scale = torch.tanh(raw)
            a, b = b * torch.exp(log_scale) + shift, a
            log_det = log_det + log_scale.sum(1)
        z = torch.cat([a, b], 1)
        return -0.5 * (z * z).sum(1) - 0.5 * FEATURES * 1.8378770664093453 + log_det


def compiled():
    model = RealNVP()
    time_flow("torch.compile", torch.compile(model), model.parameters(), x, STEPS)


def normflows():
    import normflows as nf

    flows = []
    for _ in range(COUPLINGS):
        network = nf.nets.MLP([HALF, HIDDEN, HIDDEN, 2 * REST], init_zeros=True)
        flows.append(nf.flows.AffineCouplingBlock(network, scale_map="exp"))
        flows.append(nf.flows.Permute(FEATURES, mode="swap"))
    base = nf.distributions.base.DiagGaussian(FEATURES, trainable=False)
    model = nf.NormalizingFlow(base, flows)
    time_flow("normflows", model.log_prob, model.parameters(), x, STEPS)


def nflows():
    from nflows import distributions, flows, transforms

    layers = []
    for k in range(COUPLINGS):
        mask = torch.zeros(FEATURES)
        mask[:HALF] = 1
        layers.append(transforms.AffineCouplingTransform(mask if k % 2 == 0 else 1 - mask, MLP))
    model = flows.Flow(
        transforms.CompositeTransform(layers), distributions.StandardNormal([FEATURES])
    )
    time_flow("nflows", model.log_prob, model.parameters(), x, STEPS)


def zuko():
    import zuko

    model = zuko.flows.NICE(FEATURES, transforms=COUPLINGS, hidden_features=(HIDDEN, HIDDEN))
    time_flow("zuko", lambda x: model().log_prob(x), model.parameters(), x, STEPS)


eager = RealNVP()
time_flow("torch by hand, eager", eager, eager.parameters(), x, STEPS)
for peer in (compiled, normflows, nflows, zuko):
    peer()
