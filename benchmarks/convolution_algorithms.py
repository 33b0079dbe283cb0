"""Three ways to convolve on a CPU, in the shapes of the image flows; one thread, forward, float32.

patches : kernels/cpu/conv.py, patches of the thinner side in scratch memory and one product
shifted : no patches: in a padded image the k pixels of a patch's row lie one after the other, so
          overlapping rows of it are multiplied by each row of the kernel, and k products are added
direct  : nested loops over pixels and taps, the innermost one over the output channels

    NPFLOW_THREADS=1 python benchmarks/convolution_algorithms.py
"""

import time

import numpy as np
from numpy.lib.stride_tricks import as_strided

from npflow.kernels.cpu import conv
from npflow.kernels.cpu._gemm import VECTOR_BYTES, multiply
from npflow.kernels.cpu.threads import compiled, kernel

SHAPES = [  # images, side, channels in and out, k
    (32, 14, 2, 64, 3),
    (32, 14, 64, 4, 3),
    (32, 14, 4, 4, 3),
    (32, 14, 2, 32, 5),
    (32, 14, 32, 32, 3),
    (32, 14, 64, 32, 3),
    (32, 14, 64, 64, 3),
    (64, 7, 64, 64, 3),
    (8, 28, 32, 32, 3),
]
REPEATS = 21


@kernel
def multiply_shifted(x, k, panels, width, bias, y):
    """panels (k, panels, k C_in, ...): those of each row of the kernel."""
    n, height, columns, n_in = x.shape
    n_out, r = y.shape[3], k // 2
    padded_width = columns + r  # the zeros behind a row are those before the next one
    rows = height * padded_width
    padded = np.zeros(((height + 2 * r) * padded_width + 2 * r + k) * n_in, x.dtype)
    out = np.empty((rows, n_out), x.dtype)
    nothing = panels[0, 0][:, :0]
    for image in range(n):
        for i in range(height):
            row, start = x[image, i].reshape(-1), ((i + r) * padded_width + r) * n_in
            for j in range(columns * n_in):
                padded[start + j] = row[j]
        for p in range(panels.shape[1]):
            c = out[:, p * width : min((p + 1) * width, n_out)]
            shift = bias[:, p * width : min((p + 1) * width, n_out)]
            for u in range(k):
                strides = (n_in * x.itemsize, x.itemsize)
                a = as_strided(padded[u * padded_width * n_in :], (rows, k * n_in), strides)
                if u == 0:
                    multiply(a, panels[u, p], c, shift, nothing)
                else:
                    multiply(a, panels[u, p], c, c, nothing)
        for i in range(height):
            for j in range(columns):
                for o in range(n_out):
                    y[image, i, j, o] = max(out[i * padded_width + j, o], x.dtype.type(0))


@compiled("contract", "reassoc")
def convolve_directly(x, weight, bias, y):
    n, height, columns, n_in = x.shape
    k, n_out = len(weight), y.shape[3]
    r = k // 2
    total = np.empty(n_out, x.dtype)
    for image in range(n):
        for i in range(height):
            for j in range(columns):
                total[:] = bias
                for u in range(max(0, r - i), min(k, height + r - i)):
                    for v in range(max(0, r - j), min(k, columns + r - j)):
                        for c in range(n_in):
                            value = x[image, i + u - r, j + v - r, c]
                            for o in range(n_out):
                                total[o] += value * weight[u, v, c, o]
                for o in range(n_out):
                    y[image, i, j, o] = max(total[o], x.dtype.type(0))


def shifted(x, weight, bias, y):
    k, _, n_in, n_out = weight.shape
    packed = [conv._packed(row.reshape(k * n_in, n_out)) for row in weight]
    panels = np.stack([panels for panels, _ in packed])
    multiply_shifted(x, k, panels, packed[0][1], bias.reshape(1, -1), y)


def main() -> None:
    print(f"GFLOP/s, best of {REPEATS} runs; vectors of {VECTOR_BYTES} bytes")
    print("| images | pixels | channels | kernel | patches | shifted | direct |\n|" + "---|" * 7)
    rng = np.random.default_rng(0)
    for n, side, n_in, n_out, k in SHAPES:
        x = rng.normal(size=(n, side, side, n_in)).astype(np.float32)
        weight = rng.normal(size=(k, k, n_in, n_out)).astype(np.float32)
        bias = rng.normal(size=n_out).astype(np.float32)
        outputs = [np.empty((n, side, side, n_out), np.float32) for _ in range(2)]
        ways = (
            lambda x=x, w=weight, b=bias: conv.conv_forward(x, w, b, "relu"),
            lambda x=x, w=weight, b=bias, y=outputs[0]: shifted(x, w, b, y),
            lambda x=x, w=weight, b=bias, y=outputs[1]: convolve_directly(x, w, b, y),
        )
        expected, *_ = (way() for way in ways)
        scale = np.abs(expected).max()
        assert all(np.abs(y - expected).max() < 1e-5 * scale for y in outputs)
        seconds: list[list[float]] = [[], [], []]
        for _ in range(REPEATS):
            for way, taken in zip(ways, seconds, strict=True):
                start = time.perf_counter()
                way()
                taken.append(time.perf_counter() - start)
        flops = 2 * n * side**2 * n_in * n_out * k**2
        rates = " | ".join(f"{flops / min(taken) / 1e9:.0f}" for taken in seconds)
        print(f"| {n} | {side} x {side} | {n_in} to {n_out} | {k} x {k} | {rates} |")


if __name__ == "__main__":
    main()
