"""The convolutions of the numpy backend beside PyTorch's, for the layers of image flows.

A table of medians of one forward call (with a bias, without an activation) and of one backward call
(dweight, dbias, dx), in microseconds; float32, as many threads in both. PyTorch is timed with its
default layout of images (B, C, H, W) and with channels last, as npflow's are. Each shape has as
many batches as it takes to leave the caches between two uses. The systems run by turns in blocks,
so that one does not meet another's idle threads spinning. It needs an interpreter with the extra
`peers`:

    .venv-torch/bin/python benchmarks/convolution.py
"""

from time import sleep

import numpy as np
import torch
from linear import times

from npflow.kernels.cpu import conv_backward, conv_forward
from npflow.kernels.cpu.threads import THREADS

SHAPES = [  # batch, height = width, kernel, n_in, n_out
    # Glow of width 64: a coupling's network and the invertible convolution, on two scales.
    (64, 14, 3, 2, 64), (64, 14, 1, 64, 64), (64, 14, 3, 64, 4), (64, 14, 1, 4, 4),
    (64, 7, 3, 4, 64), (64, 7, 1, 64, 64), (64, 7, 3, 64, 8), (64, 7, 1, 8, 8),
    # Gated residual networks of widths 32, 48 and 64: first, inner, outer and last layer.
    (128, 28, 3, 1, 32), (128, 28, 3, 64, 32), (128, 28, 1, 64, 64), (128, 28, 3, 64, 2),
    (128, 14, 3, 2, 48), (128, 14, 3, 96, 48), (128, 14, 1, 96, 96), (128, 14, 3, 96, 4),
    (128, 7, 3, 4, 64), (128, 7, 3, 128, 64), (128, 7, 1, 128, 128), (128, 7, 3, 128, 8),
]  # fmt: skip
LAYOUTS = {"torch": torch.contiguous_format, "channels last": torch.channels_last}
ACTIVATION = "identity"
ACTIVATIONS_BYTES = 48e6
ROUNDS = 5


def data(batch, height, k, n_in, n_out):
    """The weight, the bias, and as many x and dy as it takes."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    copies = np.clip(ACTIVATIONS_BYTES // (4 * batch * height**2 * (n_in + n_out)), 1, 32)
    xs = [normal(batch, height, height, n_in) for _ in range(int(copies))]
    dys = [normal(batch, height, height, n_out) for _ in range(int(copies))]
    return normal(k, k, n_in, n_out), normal(n_out), xs, dys


def npflow_calls(weight, bias, xs, dys):
    """Forward and backward, each a function and the arguments of its calls."""
    dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
    forward = [(x, weight, bias, ACTIVATION) for x in xs]
    backward = [
        (dy, x, conv_forward(x, weight, bias, ACTIVATION), weight, ACTIVATION, dweight, dbias)
        for x, dy in zip(xs, dys, strict=True)
    ]
    return (conv_forward, forward), (conv_backward, backward)


def torch_calls(layout, weight, bias, xs, dys):
    """The same of PyTorch."""

    def images(array):
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
        return tensor.contiguous(memory_format=layout)

    def conv(x, weight, bias):
        return torch.nn.functional.conv2d(x, weight, bias, padding=weight.shape[2] // 2)

    def backward(dy, y, inputs):
        return torch.autograd.grad(y, inputs, dy, retain_graph=True)

    weight = torch.from_numpy(weight).permute(3, 2, 0, 1).contiguous(memory_format=layout)
    bias = torch.from_numpy(bias)
    inputs = [tuple(t.requires_grad_() for t in (images(x), weight, bias)) for x in xs]
    graphs = [(images(dy), conv(*i), i) for i, dy in zip(inputs, dys, strict=True)]
    return (torch.no_grad()(conv), inputs), (backward, graphs)


def check_equal(ours, theirs):
    """Both must compute the same, or one of the times is of another thing."""
    (forward, arguments), (backward, gradient_arguments) = ours
    dweight, dbias = gradient_arguments[0][-2:]
    found = forward(*arguments[0]), backward(*gradient_arguments[0]), dweight, dbias
    (forward, arguments), (backward, gradient_arguments) = theirs
    y, (dx, dweight, dbias) = forward(*arguments[0]), backward(*gradient_arguments[0])
    expected = y.permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), dweight.permute(2, 3, 1, 0), dbias
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max())


def medians(systems):
    """Seconds of a call of each system, in blocks by turns."""
    taken = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, (call, arguments) in systems.items():
            sleep(0.03)
            taken[name] += times(call, arguments)[1:]
    return {name: float(np.median(t)) for name, t in taken.items()}


def main():
    torch.set_num_threads(THREADS)
    head = "".join(f" | {name + ' us':>16} ratio" for name in LAYOUTS)
    print(f"{'':8} batch height k n_in n_out |  npflow us GFLOP/s{head}")
    for shape in SHAPES:
        arrays = data(*shape)
        systems = {"npflow": npflow_calls(*arrays)}
        for name, layout in LAYOUTS.items():
            systems[name] = torch_calls(layout, *arrays)
        check_equal(systems["npflow"], systems["torch"])
        batch, height, k, n_in, n_out = shape
        for i, (name, products) in enumerate((("forward", 1), ("backward", 2))):
            theirs = medians({system: calls[i] for system, calls in systems.items()})
            ours = theirs.pop("npflow")
            gflops = products * 2e-9 * batch * height**2 * k**2 * n_in * n_out / ours
            line = f"{name:8} {batch:5d} {height:6d} {k} {n_in:4d} {n_out:5d} "
            line += f"| {1e6 * ours:10.1f} {gflops:7.0f}"
            line += "".join(f" | {1e6 * t:16.1f} {ours / t:5.2f}" for t in theirs.values())
            print(line, flush=True)


if __name__ == "__main__":
    main()
