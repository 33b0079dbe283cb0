"""Time normflows' Glow of 28 x 28 images, or measure the memory of its training step.

Arguments: what width depth batch repetitions
    what  : time (with factored 1x1 convolutions, its default, and with dense ones) or memory
    depth : steps of flow on each of the two scales

Prints one JSON line a system.
"""

import sys

import normflows as nf
import torch
from peak_memory import peak_memory
from timing import median_ms, report
from timing_torch import time_flow, training_step


def glow(width, depth, factored=True):
    # normflows counts from the latents: first the scale of 7 x 7 x 8, then that of 14 x 14 x 4, of
    # which half are factored out.
    flows = [
        [nf.flows.GlowBlock(channels, width, use_lu=factored) for _ in range(depth)]
        + [nf.flows.Squeeze()]
        for channels in (8, 4)
    ]
    bases = [
        nf.distributions.DiagGaussian(shape, trainable=False) for shape in ((8, 7, 7), (2, 14, 14))
    ]
    model = nf.MultiscaleFlow(bases, flows, [nf.flows.Merge()])
    return model, lambda x: model.log_prob(x, None)  # it asks for a label


def images(batch):
    return torch.rand(batch, 1, 28, 28)


def time_all(width, depth, batch, repetitions):
    for system, factored in (("normflows", True), ("normflows, dense 1x1", False)):
        model, log_prob = glow(width, depth, factored)
        time_flow(
            system, log_prob, model.parameters(), images(batch), repetitions,
            model.sample, batch, draws=repetitions,
        )  # fmt: skip


def measure_memory(width, depth, batch, repetitions):
    def build(depth, batch):
        model, log_prob = glow(width, depth)
        count = sum(p.numel() for p in model.parameters())
        return count, training_step(log_prob, model.parameters(), images(batch))

    numbers = peak_memory(build, depth, batch, lambda step: median_ms(step, repetitions))
    report("normflows", **numbers)


if __name__ == "__main__":
    torch.manual_seed(0)
    {"time": time_all, "memory": measure_memory}[sys.argv[1]](*map(int, sys.argv[2:]))
