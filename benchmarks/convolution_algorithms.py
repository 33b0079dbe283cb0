"""Three ways to convolve on a CPU, in the shapes of the image flows; one thread, forward, float32.

patches     : kernels/cpu/conv.py, patches of the thinner side in scratch memory and one product
overlapping : the same file, overlapping rows of a padded image and k products
direct      : nested loops over pixels and taps, the innermost one over the output channels

    NPFLOW_THREADS=1 python benchmarks/convolution_algorithms.py
"""

import time

import numpy as np

from npflow.kernels.cpu import conv
from npflow.kernels.cpu._gemm import VECTOR_BYTES
from npflow.kernels.cpu.threads import compiled

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


def convolve(x, weight, bias, many):
    """By overlapping rows if both sides have `many` channels, else by patches."""
    conv._MANY = many
    return conv.conv_forward(x, weight, bias, "relu")


def main() -> None:
    print(f"GFLOP/s, best of {REPEATS} runs; vectors of {VECTOR_BYTES} bytes")
    print(
        "| images | pixels | channels | kernel | patches | overlapping | direct |\n|" + "---|" * 7
    )
    rng = np.random.default_rng(0)
    for n, side, n_in, n_out, k in SHAPES:
        x = rng.normal(size=(n, side, side, n_in)).astype(np.float32)
        weight = rng.normal(size=(k, k, n_in, n_out)).astype(np.float32)
        bias = rng.normal(size=n_out).astype(np.float32)
        y = np.empty((n, side, side, n_out), np.float32)
        ways = (
            lambda x=x, w=weight, b=bias: convolve(x, w, b, many=1 << 30),
            lambda x=x, w=weight, b=bias: convolve(x, w, b, many=1),
            lambda x=x, w=weight, b=bias, y=y: convolve_directly(x, w, b, y),
        )
        expected, again, _ = (way() for way in ways)
        for other in (again, y):
            assert np.abs(other - expected).max() < 1e-5 * np.abs(expected).max()
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
