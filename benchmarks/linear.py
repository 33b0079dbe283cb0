"""The linear layer of the numpy backend beside the same layer on np.matmul.

A table of medians of one forward, and of one backward call (dweight, dbias, dx), in microseconds.
Each shape has as many weights as it takes to leave the caches between two uses, as a model has.
The two sides run by turns in blocks, so that one does not meet the other's idle threads spinning.

    python benchmarks/linear.py
"""

from time import perf_counter, sleep

import numpy as np

from npflow.kernels.cpu import linear_backward, linear_forward

ACTIVATION = "relu"
SHAPES = [  # batch, n_in, n_out
    (128, 392, 1024), (128, 1024, 1024), (128, 1024, 784),
    (256, 1, 64), (256, 64, 64), (256, 64, 2),
    (1, 1024, 1024), (1, 64, 64), (8, 512, 512), (32, 1024, 1024), (100, 100, 100),
    (1000, 2, 128), (1000, 256, 256), (1000, 1024, 1024), (1000, 2048, 2),
]  # fmt: skip
WEIGHTS_BYTES = 48e6
ROUNDS = 5
SECONDS = 0.1  # for one block of calls


def matmul_forward(x, weight, bias, activation):
    y = x @ weight
    y += bias
    return np.maximum(y, 0, out=y)


def matmul_backward(dy, x, y, weight, activation, dweight, dbias):
    da = dy * (y > 0)
    dweight += x.T @ da
    dbias += da.sum(axis=0)
    return da @ weight.T


def times(call, arguments):
    """Seconds of each call in one block."""
    taken = []
    end = perf_counter() + SECONDS
    while perf_counter() < end or len(taken) < 3:
        begin = perf_counter()
        call(*arguments[len(taken) % len(arguments)])
        taken.append(perf_counter() - begin)
    return taken


def main():
    rng = np.random.default_rng(0)
    print("batch  n_in n_out |  forward us   matmul us  GFLOP/s ratio "
          "| backward us   matmul us  GFLOP/s ratio")  # fmt: skip
    for batch, n_in, n_out in SHAPES:
        copies = int(np.clip(WEIGHTS_BYTES // (8 * n_in * n_out), 1, 32))
        size = (copies, n_in, n_out)
        weights = rng.normal(size=size).astype(np.float32)
        dweights = np.zeros(size, np.float32)
        bias, dbias = np.zeros((2, n_out), np.float32)
        x, dy = (rng.normal(size=(batch, n)).astype(np.float32) for n in (n_in, n_out))
        y = linear_forward(x, weights[0], bias, ACTIVATION)
        forward = [(x, w, bias, ACTIVATION) for w in weights]
        backward = [
            (dy, x, y, w, ACTIVATION, dw, dbias) for w, dw in zip(weights, dweights, strict=True)
        ]
        line = f"{batch:5d} {n_in:5d} {n_out:5d} "
        for products, arguments, calls in (
            (1, forward, (linear_forward, matmul_forward)),
            (2, backward, (linear_backward, matmul_backward)),
        ):
            taken = [], []
            for _ in range(ROUNDS):
                for call, into in zip(calls, taken, strict=True):
                    sleep(0.03)
                    into += times(call, arguments)[1:]
            ours, theirs = (float(np.median(t)) for t in taken)
            gflops = products * 2e-9 * batch * n_in * n_out / ours
            line += f"| {1e6 * ours:10.1f} {1e6 * theirs:11.1f} {gflops:8.0f} {ours / theirs:5.2f} "
        print(line, flush=True)


if __name__ == "__main__":
    main()
