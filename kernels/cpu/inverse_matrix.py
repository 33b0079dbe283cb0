"""The inverse and log|det| of a small matrix on the CPU; the work is on rows, which vectorises."""

import numpy as np

from npflow.kernels.cpu.threads import kernel


@kernel
def _invert(a, x):
    """x = a^-1, both float64; a is overwritten by its LU factors. Returns log|det a|."""
    n = len(a)
    x[...] = 0
    for k in range(n):
        x[k, k] = 1
    log_det = 0.0
    for k in range(n):  # a = L U with rows exchanged by P, and x = L^-1 P
        pivot = k
        for i in range(k + 1, n):
            if abs(a[i, k]) > abs(a[pivot, k]):
                pivot = i
        if pivot != k:
            for j in range(n):
                a[k, j], a[pivot, j] = a[pivot, j], a[k, j]
                x[k, j], x[pivot, j] = x[pivot, j], x[k, j]
        log_det += np.log(abs(a[k, k]))
        for i in range(k + 1, n):
            factor = a[i, k] / a[k, k]
            for j in range(k + 1, n):
                a[i, j] -= factor * a[k, j]
            for j in range(n):
                x[i, j] -= factor * x[k, j]
    for k in range(n - 1, -1, -1):  # x = U^-1 x
        for j in range(n):
            x[k, j] /= a[k, k]
        for i in range(k):
            for j in range(n):
                x[i, j] -= a[i, k] * x[k, j]
    return log_det


def _norm(a):
    return np.abs(a).sum(axis=0).max()


def update_inverse(weight, factored, inverse, log_det, count):
    if np.array_equal(weight, factored):
        return
    factored[...] = weight
    count += 1
    exact, found = weight.astype(np.float64, order="C"), np.empty(weight.shape)
    norm = _norm(exact)
    value = _invert(exact, found)
    with np.errstate(over="ignore", invalid="ignore"):  # they leave what is refused below
        condition = norm * _norm(found)
    regular = condition <= 1 / np.finfo(weight.dtype).eps
    inverse[...] = found if regular else np.nan
    log_det[...] = value if regular else np.nan
