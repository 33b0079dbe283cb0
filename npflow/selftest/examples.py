"""Example calls of every kernel: what its arguments are, with the shapes of kernels/README.md.

Each family of kernels is a generator of (name, arguments). Arrays are on the host, in float64;
a dtype among the arguments stands for that of the backend. All batches have b rows. Accumulators
start with numbers in them, for they must be added to, and small constants are large enough to be
missed if a kernel left them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from npflow.backend import get_backend

Arguments = tuple[Any, ...]
Calls = Iterator[tuple[str, Arguments]]
Generator = np.random.Generator

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
DTYPE = np.dtype(np.float64)  # that of the backend
reference = get_backend("reference").kernels  # for arguments that are another kernel's result
PIXELS = (2, 3)  # of images
EPSILON = 0.1

# Rows and features: one, a few, more than a warp, more than a block, either way, and more rows than
# a tile of a product.
SIZES = ((1, 1), (7, 5), (37, 33), (600, 3), (2, 300), (130, 9))

# Formulas fused into one pass over memory: their time is that of the bytes they move. The others
# are products of matrices, random numbers, or arithmetic on a small matrix.
MEMORY_BOUND = (
    "affine_forward", "affine_inverse", "affine_backward", "affine_inverse_backward",
    "rational_quadratic_forward", "rational_quadratic_inverse",
    "rational_quadratic_backward", "rational_quadratic_inverse_backward",
    "diagonal_forward", "diagonal_inverse", "diagonal_backward", "diagonal_inverse_backward",
    "moments", "batch_norm_forward", "batch_norm_inverse",
    "batch_norm_backward", "batch_norm_inverse_backward",
    "actnorm_forward", "actnorm_inverse", "actnorm_backward", "actnorm_inverse_backward",
    "logit_forward", "logit_inverse", "logit_backward", "logit_inverse_backward",
    "normal_log_prob", "normal_log_prob_backward",
    "logistic_log_prob", "logistic_log_prob_backward",
    "bernoulli_log_prob", "bernoulli_backward", "mixture_log_prob", "mixture_backward",
    "concat_elu_forward", "concat_elu_backward", "gated_norm_forward", "gated_norm_backward",
    "split", "merge", "merge_add", "permute", "add_up",
    "global_norm", "adam_step", "ema_update",
)  # fmt: skip


@lru_cache(maxsize=16)
def examples(b: int, d: int, seed: int = 2) -> dict[str, list[Arguments]]:
    """Every kernel's example calls with b rows of d features. The arrays are not to be changed."""
    found: dict[str, list[Arguments]] = {}
    for family in FAMILIES:
        for name, arguments in family(np.random.default_rng(seed), b, d):
            found.setdefault(name, []).append(arguments)
    return found


def _random(rng: Generator, b: int, d: int) -> Calls:
    size, seed, stream, step = b * d, 2**40 + 5, 3, 2**32 - 1
    yield "uniform", (size, seed, stream, step, DTYPE)
    yield "normal", (size, seed, stream, step, DTYPE)


def _linear(rng: Generator, b: int, d: int) -> Calls:
    for activation in ACTIVATIONS:
        for n_out in (1, 7, 70):
            x, dy = rng.normal(size=(b, d)), rng.normal(size=(b, n_out))
            weight, dweight = rng.normal(size=(2, d, n_out)) / np.sqrt(d)
            bias, dbias = rng.normal(size=(2, n_out))
            y = reference.linear_forward(x, weight, bias, activation)
            yield "linear_forward", (x, weight, bias, activation)
            yield "linear_backward", (dy, x, y, weight, activation, dweight, dbias)


def _masked_linear(rng: Generator, b: int, d: int) -> Calls:
    for activation in ACTIVATIONS:
        reach, parts = np.sort(rng.integers(0, d + 1, d + 2)), 2
        n_out = parts * len(reach)
        mask = _staircase(reach, d, n_out)
        x, dy = rng.normal(size=(b, d)), rng.normal(size=(b, n_out))
        weight, dweight = rng.normal(size=(2, d, n_out)) * mask / np.sqrt(d)
        bias, dbias = rng.normal(size=(2, n_out))
        y = reference.masked_linear_forward(x, weight, bias, reach, activation)
        yield "masked_linear_forward", (x, weight, bias, reach, activation)
        yield "masked_linear_backward", (dy, x, y, weight, reach, activation, dweight, dbias)


def _autoregressive(rng: Generator, b: int, d: int) -> Calls:
    """Two hidden layers with links past them, or no layer at all; degrees are random."""
    d = min(d, 40)
    networks = (  # map, hidden layers, context, whether there are direct links, activation
        ("additive", (), 1, True, "relu"),
        ("affine", (), 0, False, "relu"),
        ("affine", (2 * d + 1, d + 6), 2, True, "tanh"),
        ("rational_quadratic", (d + 8,), 0, False, "elu"),
        ("bernoulli", (d + 3,), 3, True, "leaky_relu"),
        ("mixture", (3 * d, 5, d + 1), 1, False, "relu"),
    )
    parts = {"affine": 2, "rational_quadratic": 3 * 4 - 1, "mixture": 3 * 4}
    for map, hidden, context_features, has_direct, activation in networks:
        outputs = parts.get(map, 1) * d
        reaches, ends = _degrees(rng, d, hidden, context_features)
        weights, n_in = [], context_features + d
        for n_out, reach in zip((*hidden, outputs), reaches, strict=True):
            weights.append(_masked_weight(rng, reach, n_in, n_out))
            n_in = n_out
        weights[-1] *= 0.3  # exponents that feed on themselves soon overflow
        biases = [0.3 * rng.normal(size=weight.shape[1]) for weight in weights]
        reach = context_features + np.arange(d)
        direct = 0.3 * _masked_weight(rng, reach, context_features + d, outputs)
        network = tuple(weights), tuple(biases), direct if has_direct else direct[:0]
        steps = reaches, ends, activation, map
        z, context = rng.normal(size=(b, d)), rng.normal(size=(b, context_features))
        if map == "mixture":
            z = np.concatenate([z, rng.uniform(size=(b, d))], axis=1)
        constants = np.full((int(map in ("affine", "rational_quadratic")), d), 1.5)
        yield "autoregressive_inverse", (z, context, *network, *steps, constants)
        if map in ("bernoulli", "mixture"):
            continue
        x, activations, params = reference.autoregressive_inverse(
            z, context, *network, *steps, constants
        )
        inputs, dx, dlog_det = np.concatenate([context, x], axis=1), *_gradient(rng, b, d)
        yield "autoregressive_inverse_backward", (
            dx, dlog_det, inputs, activations, params, network[0], network[2], *steps, constants,
        )  # fmt: skip


def _conv(rng: Generator, b: int, d: int) -> Calls:
    for k, n_in, n_out, activation in (
        (3, d, 7, "elu"), (3, 7, d, "tanh"), (1, d, 2, "leaky_relu"), (5, 2, 3, "identity"),
    ):  # fmt: skip
        x, dy = rng.normal(size=(b, *PIXELS, n_in)), rng.normal(size=(b, *PIXELS, n_out))
        weight, dweight = rng.normal(size=(2, k, k, n_in, n_out)) / (k * np.sqrt(n_in))
        bias, dbias = rng.normal(size=(2, n_out))
        y = reference.conv_forward(x, weight, bias, activation)
        yield "conv_forward", (x, weight, bias, activation)
        yield "conv_backward", (dy, x, y, weight, activation, dweight, dbias)


def _mix(rng: Generator, b: int, d: int) -> Calls:
    x, dz = rng.normal(size=(b, 2, d)), rng.normal(size=(b, 2, 3))
    weight, dweight = rng.normal(size=(2, d, 3))
    yield "mix_forward", (x, weight)
    yield "mix_backward", (dz, x, weight, dweight)


def _conv_weights(rng: Generator, b: int, d: int) -> Calls:
    dweight, weight, dv = rng.normal(size=(3, *PIXELS, d))
    bias, dbias, gain, dgain, dgiven_bias = rng.normal(size=(5, d))
    yield "normalized_weight", (weight, gain)
    yield "normalized_weight_backward", (dweight, weight, gain, dv, dgain)
    factor = 3.0
    yield "scaled_weight", (weight, bias, gain, factor)
    given = weight, bias, gain, factor
    yield "scaled_weight_backward", (dweight, dbias, *given, dv, dgiven_bias, dgain)


def _affine(rng: Generator, b: int, d: int) -> Calls:
    x, params = rng.normal(size=(b, d)), rng.normal(size=(b, 2 * d))
    bound, dbound = rng.normal(size=(2, d))
    yield "affine_forward", (x, params, bound)
    yield "affine_inverse", (x, params, bound)
    tanh = np.tanh(params[:, d:])
    for name in ("affine_backward", "affine_inverse_backward"):
        yield name, (*_gradient(rng, b, d), x, tanh, bound, dbound)


def _rational_quadratic(rng: Generator, b: int, d: int) -> Calls:
    for bins in (8, 2):
        x, params = 2 * rng.normal(size=(b, d)), rng.normal(size=(b, (3 * bins - 1) * d)) / 2
        yield "rational_quadratic_forward", (x, params, 3.0)
        yield "rational_quadratic_inverse", (x, params, 3.0)
        for name in ("rational_quadratic_backward", "rational_quadratic_inverse_backward"):
            yield name, (*_gradient(rng, b, d), x, params, 3.0)


def _diagonal(rng: Generator, b: int, d: int) -> Calls:
    x, (log_scale, dlog_scale) = rng.normal(size=(b, d)), rng.normal(size=(2, d))
    yield "diagonal_forward", (x, log_scale)
    yield "diagonal_inverse", (x, log_scale)
    for name in ("diagonal_backward", "diagonal_inverse_backward"):
        yield name, (*_gradient(rng, b, d), x, log_scale, dlog_scale)


def _batch_norm(rng: Generator, b: int, d: int) -> Calls:
    x, mean, var = 3 + rng.normal(size=(b, d)), 3 + rng.normal(size=d), rng.uniform(0.1, 2, d)
    log_gamma, beta, dlog_gamma, dbeta = rng.normal(size=(4, d))
    yield "moments", (x,)
    yield "batch_norm_forward", (x, mean, var, log_gamma, beta, EPSILON)
    yield "batch_norm_inverse", (x, mean, var, log_gamma, beta, EPSILON)
    at, sums = (*_gradient(rng, b, d), x, mean, var, log_gamma, EPSILON), (dlog_gamma, dbeta)
    for own in (False, True):
        yield "batch_norm_backward", (*at, own, *sums)
    yield "batch_norm_inverse_backward", (*at, *sums)


def _actnorm(rng: Generator, b: int, d: int) -> Calls:
    log_scale, shift, dlog_scale, dshift = rng.normal(size=(4, d))
    for shape in ((b, d), (b, *PIXELS, d)):
        x, dz, dlog_det = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=b)
        yield "actnorm_forward", (x, log_scale, shift)
        yield "actnorm_inverse", (x, log_scale, shift)
        for name in ("actnorm_backward", "actnorm_inverse_backward"):
            yield name, (dz, dlog_det, x, log_scale, dlog_scale, dshift)


def _inverse_matrix(rng: Generator, b: int, d: int) -> Calls:
    """New, as it was, singular, nearly so, with a NaN, and with pivots that are zero at first."""
    c = min(d, 33)
    weight = 2 * np.eye(c)[::-1] + rng.normal(size=(c, c)) / np.sqrt(c)  # pivots are needed
    nothing, inverse, log_det = np.full((c, c), np.nan), rng.normal(size=(c, c)), rng.normal(size=1)
    found = inverse, log_det, np.array([4])
    yield "update_inverse", (weight, nothing, *found)
    yield "update_inverse", (weight, weight, *found)
    singular, broken = weight.copy(), weight.copy()
    singular[-1] = weight[0] * (c > 1)
    broken[-1, 0] = np.nan
    yield "update_inverse", (singular, weight, *found)
    yield "update_inverse", (broken, broken, *found)
    nearly_singular = np.diag([1, 1, 1, 1, 1, 1, 1e-17])
    late_pivot = np.array([[0, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    for weight in (np.eye(5)[::-1], nearly_singular, 1.0 * late_pivot):
        yield "update_inverse", (weight, 0 * weight, rng.normal(size=weight.shape), *found[1:])


def _logit(rng: Generator, b: int, d: int) -> Calls:
    lam, levels = 0.05, 256.0
    y = 3 * rng.normal(size=(b, d))
    yield "logit_forward", (rng.uniform(0, levels, size=(b, d)), lam, levels)
    yield "logit_inverse", (y, lam, levels)
    for name in ("logit_backward", "logit_inverse_backward"):
        yield name, (*_gradient(rng, b, d), y, lam, levels)


def _densities(rng: Generator, b: int, d: int) -> Calls:
    z, dlog_prob = rng.normal(size=(b, d)), rng.normal(size=b)
    for density in ("normal", "logistic"):
        yield f"{density}_log_prob", (z,)
        yield f"{density}_log_prob_backward", (z, dlog_prob)
    x, logits = 1.0 * (z > 0), 3 * rng.normal(size=(b, d))
    yield "bernoulli_log_prob", (x, logits)
    yield "bernoulli_backward", (x, logits, dlog_prob)


def _mixture(rng: Generator, b: int, d: int) -> Calls:
    for components in (10, 1):
        x, params = rng.normal(size=(b, d)), rng.normal(size=(b, 3 * components * d))
        yield "mixture_log_prob", (x, params)
        yield "mixture_backward", (x, params, rng.normal(size=b))


def _gated(rng: Generator, b: int, d: int) -> Calls:
    c = d + 1  # with one channel a norm leaves nothing
    x, dx = rng.normal(size=(2, b, *PIXELS, c))
    params, dy = rng.normal(size=(2, b, *PIXELS, 2 * c))
    gain, shift, dgain, dshift = rng.normal(size=(4, c))
    yield "concat_elu_forward", (x,)
    yield "concat_elu_backward", (dy, reference.concat_elu_forward(x))
    yield "gated_norm_forward", (x, params, gain, shift, EPSILON)
    yield "gated_norm_backward", (dx, x, params, gain, EPSILON, dgain, dshift)


def _columns(rng: Generator, b: int, d: int) -> Calls:
    x, order = rng.normal(size=(b, d + 1)), rng.permutation(d + 1)
    kept, transformed = np.sort(order[: d // 2 + 1]), order[d // 2 + 1 :]
    x_a, x_b = x[:, kept], x[:, transformed]
    yield "split", (x, kept, transformed)
    yield "merge", (x_a, x_b, kept, transformed)
    yield "merge_add", (x_a, rng.normal(size=x_a.shape), x_b, kept, transformed)
    yield "permute", (x, order)
    for count in (3, 37):  # more than one launch takes
        yield "add_up", (tuple(rng.normal(size=(count, b))),)


def _optimizer(rng: Generator, b: int, d: int) -> Calls:
    values, grads, m, average = rng.normal(size=(4, b * d))
    v, unclipped = rng.uniform(0.1, 2, size=b * d), np.zeros(1)
    yield "global_norm", (grads,)
    yield "global_norm", (1e-25 * grads,)  # their squares are zero in float32
    yield "global_norm", (rng.normal(size=70_001),)  # more blocks than one adds up at a time
    learning_rate, beta1, beta2, weight_decay, step = 0.1, 0.9, 0.99, 0.2, 3
    for norm, max_norm in (
        (np.full(1, 2.0), 1.0), (np.full(1, 2.0), np.inf), (np.full(1, 0.5), 1.0), (unclipped, 1.0),
        (np.full(1, np.nan), 1.0), (np.full(1, np.inf), 1.0),
    ):  # fmt: skip
        yield "adam_step", (
            values, grads, m, v, norm, max_norm, learning_rate, beta1, beta2, EPSILON,
            weight_decay, step,
        )  # fmt: skip
    yield "ema_update", (average, values, 0.9)


def _drift(rng: Generator, b: int, d: int) -> Calls:
    (found, broken, probe), out = rng.normal(size=(3, b * d)), rng.normal(size=1)
    broken[-1:] = np.nan
    yield "drift", (found, probe, out)
    yield "drift", (broken, probe, out)


FAMILIES: tuple[Callable[[Generator, int, int], Calls], ...] = (
    _random, _linear, _masked_linear, _autoregressive, _conv, _gated, _affine,
    _rational_quadratic, _diagonal, _batch_norm, _actnorm, _inverse_matrix, _logit, _densities,
    _mixture, _columns, _mix, _conv_weights, _drift, _optimizer,
)  # fmt: skip


def _gradient(rng: Generator, b: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """dz (b, d) and dlog_det (b,), with which every gradient of a map begins."""
    return rng.normal(size=(b, d)), rng.normal(size=b)


def _staircase(reach: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    """The mask (n_in, n_out) whose column j has reach[j mod n] ones."""
    return np.arange(n_in)[:, None] < np.tile(reach, n_out // len(reach))


def _masked_weight(rng: Generator, reach: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    mask = _staircase(reach, n_in, n_out)
    return rng.normal(size=mask.shape) * mask / np.sqrt(n_in)


def _degrees(
    rng: Generator, d: int, hidden: tuple[int, ...], context: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """reaches and ends of units with random degrees -1 .. d-2; see npflow/networks/made.py."""
    features = np.arange(d)
    known = context + np.arange(d + 1)  # known[m + 1] inputs have a degree of m or less
    reaches, ends, end = [], [], context + features
    for width in hidden:
        degrees = np.sort(rng.integers(-1, max(d - 1, 0), width))
        reaches.append(known[degrees + 1])
        end = np.searchsorted(degrees, features, "left")
        known = np.searchsorted(degrees, np.arange(-1, d), "right")
        ends.append(end)
    return (*reaches, end), tuple(ends)
