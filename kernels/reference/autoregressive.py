"""The inverse of an autoregressive network in one pass, and its gradient.

A network of masked layers computes, from [context | x] (B, C + D), the parameters of a map of each
feature, those of feature i from x_0 .. x_{i-1} alone. To invert z_i = map(x_i; params_i(x_{<i}))
one needs x_0 to know params_1, and so on. D passes through the network would do; but a hidden unit
is final as soon as the features it sees are known, so each unit need be computed only once:

    for i = 0 .. D-1:
        each layer in turn: the units that see the features up to i - 1 and were not computed yet
        params_i from the last layer's units so far;  x_i = map^-1(z_i; params_i)

The gradient walks the same way back, from the last feature to the first (docs/autoregressive.md).

Shapes: z (B, Q D), Q numbers a feature; context (B, C); weights W_0 (C + D, H_1), ...,
W_L (H_L, P D) and biases: tuples of L + 1; direct (C + D, P D), or (0, P D) for none; reaches:
tuple of L + 1, see masked_linear.py; ends: tuple of L arrays (D,), ends[l][i] units of hidden
layer l are final before feature i is computed; constants (n, D). params (B, P D) lie in parts:
[:, p D + i] belongs to feature i.

| map                | x_i =                                                        | P      | Q |
|--------------------|--------------------------------------------------------------|--------|---|
| additive           | z - shift                                                    | 1      | 1 |
| affine             | (z - shift) exp(-bound tanh(raw)); constants = bound         | 2      | 1 |
| rational_quadratic | spline^-1(z); constants = the tail bound                     | 3K - 1 | 1 |
| bernoulli          | 1 where z < logit, else 0; z is logistic noise               | 1      | 1 |
| mixture            | mean_k + e^(log_scale_k) n, k drawn with u; z = [n | u]      | 3K     | 2 |
"""

import numpy as np
from numpy.typing import NDArray

from .affine import affine_inverse, affine_inverse_backward
from .linear import _act, _act_derivative
from .mixture import mixture_sample
from .rational_quadratic import (
    rational_quadratic_inverse,
    rational_quadratic_inverse_backward,
)

Arrays = tuple[NDArray, ...]


def autoregressive_inverse(
    z: NDArray,
    context: NDArray,
    weights: Arrays,
    biases: Arrays,
    direct: NDArray,
    reaches: Arrays,
    ends: Arrays,
    activation: str,
    map: str,
    constants: NDArray,
) -> tuple[NDArray, Arrays, NDArray]:
    """x (B, D), the hidden layers' outputs at x, and params (B, P D), which give x from z."""
    features = len(reaches[-1])
    known = context.shape[1]  # columns of the input that are known
    inputs = np.concatenate([context, np.zeros((len(z), features), z.dtype)], axis=1)
    hidden = tuple(np.zeros((len(z), w.shape[1]), z.dtype) for w in weights[:-1])
    layers = (inputs, *hidden)
    params = np.zeros((len(z), weights[-1].shape[1]), z.dtype)
    for i in range(features):
        for layer, h in enumerate(hidden):
            for k in range(0 if i == 0 else ends[layer][i - 1], ends[layer][i]):
                r = reaches[layer][k]
                a = layers[layer][:, :r] @ weights[layer][:r, k] + biases[layer][k]
                h[:, k] = _act(a, activation)
        own, r = slice(i, None, features), reaches[-1][i]
        params[:, own] = layers[-1][:, :r] @ weights[-1][:r, own] + biases[-1][own]
        if len(direct):
            params[:, own] += inputs[:, :known] @ direct[:known, own]
        inputs[:, known] = _inverse(map, z[:, own], params[:, own], constants[:, i])
        known += 1
    return inputs[:, known - features :].copy(), hidden, params


def autoregressive_inverse_backward(
    dx: NDArray,
    dlog_det: NDArray,
    x: NDArray,
    activations: Arrays,
    params: NDArray,
    weights: Arrays,
    direct: NDArray,
    reaches: Arrays,
    ends: Arrays,
    activation: str,
    map: str,
    constants: NDArray,
) -> NDArray:
    """The whole gradient that reaches x: dx, and what later features add through their params.

    x here is the network's input [context | x]; dlog_det is that of the inverse's log_det.
    With dx_i complete the map's own gradient gives dparams_i, and that goes back through the
    network to the features before i. A hidden unit's gradient is complete once all features above
    its degree are done.
    """
    features = len(reaches[-1])
    known = x.shape[1]
    dinputs = np.zeros_like(x)
    dinputs[:, -features:] = dx
    dhidden = tuple(np.zeros_like(h) for h in activations)
    dlayers = (dinputs, *dhidden)
    for i in reversed(range(features)):
        known -= 1
        own, r = slice(i, None, features), reaches[-1][i]
        dparams = _inverse_backward(
            map, dinputs[:, known], dlog_det, x[:, known], params[:, own], constants[:, i]
        )
        dlayers[-1][:, :r] += dparams @ weights[-1][:r, own].T
        if len(direct):
            dinputs[:, :known] += dparams @ direct[:known, own].T
        for layer in reversed(range(len(dhidden))):
            for k in range(0 if i == 0 else ends[layer][i - 1], ends[layer][i]):
                r = reaches[layer][k]
                da = dhidden[layer][:, k] * _act_derivative(activations[layer][:, k], activation)
                dlayers[layer][:, :r] += da[:, None] * weights[layer][:r, k]
    return dinputs[:, -features:].copy()


def _inverse(map: str, z: NDArray, params: NDArray, constants: NDArray) -> NDArray:
    """x_i (B,) from z_i (B, Q) and params_i (B, P)."""
    match map:
        case "additive":
            return z[:, 0] - params[:, 0]
        case "affine":
            return affine_inverse(z, params, constants)[0][:, 0]
        case "rational_quadratic":
            return rational_quadratic_inverse(z, params, float(constants[0]))[0][:, 0]
        case "bernoulli":
            return (z[:, 0] < params[:, 0]).astype(z.dtype)
        case "mixture":
            return mixture_sample(z, params)[:, 0]
    raise ValueError(f"unknown map {map!r}")


def _inverse_backward(
    map: str, dx: NDArray, dlog_det: NDArray, x: NDArray, params: NDArray, constants: NDArray
) -> NDArray:
    """dparams_i (B, P) of the inverse, from the whole dx_i (B,)."""
    dx, x = dx[:, None], x[:, None]
    match map:
        case "additive":
            return -dx
        case "affine":
            tanh, unused = np.tanh(params[:, 1:]), np.zeros_like(constants)
            return affine_inverse_backward(dx, dlog_det, x, tanh, constants, unused)[1]
        case "rational_quadratic":
            bound = float(constants[0])
            return rational_quadratic_inverse_backward(dx, dlog_det, x, params, bound)[1]
    raise ValueError(f"the map {map!r} has no gradient")
