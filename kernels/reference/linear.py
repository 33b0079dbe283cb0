"""A linear layer with its activation: forward and hand-written gradient."""

import numpy as np
from numpy.typing import NDArray

LEAKY_SLOPE = 0.01  # slope of the leaky ReLU for negative inputs


def linear_forward(x: NDArray, weight: NDArray, bias: NDArray, activation: str) -> NDArray:
    """y = act(x W + b).

    x (B, n_in), weight W (n_in, n_out), bias b (n_out,); returns y (B, n_out). The activation is

    | activation | act(a)                            |
    |------------|-----------------------------------|
    | identity   | a                                 |
    | relu       | max(a, 0)                         |
    | leaky_relu | a where a > 0, else 0.01 a        |
    | tanh       | tanh(a)                           |
    | elu        | a where a > 0, else exp(a) - 1    |
    """
    return _act(x @ weight + bias, activation)


def linear_backward(
    dy: NDArray,
    x: NDArray,
    y: NDArray,
    weight: NDArray,
    activation: str,
    dweight: NDArray,
    dbias: NDArray,
) -> NDArray:
    """Gradient of `linear_forward`, given dy = dL/dy and the output y.

    With a = x W + b and ⊙ the elementwise product,

        da = dy ⊙ act'(a)        dW += xᵀ da        db += Σ_rows da        dx = da Wᵀ

    dweight (n_in, n_out) and dbias (n_out,) are added to in place; dx (B, n_in) is returned.
    dy may be overwritten.
    """
    da = dy * _act_derivative(y, activation)
    dweight += x.T @ da
    dbias += da.sum(axis=0)
    return da @ weight.T


def _act(a: NDArray, activation: str) -> NDArray:
    match activation:
        case "identity":
            return a
        case "relu":
            return np.maximum(a, 0)
        case "leaky_relu":
            return np.where(a > 0, a, LEAKY_SLOPE * a)
        case "tanh":
            return np.tanh(a)
        case "elu":
            return np.where(a > 0, a, np.expm1(np.minimum(a, 0)))
    raise ValueError(f"unknown activation {activation!r}")


def _act_derivative(y: NDArray, activation: str) -> NDArray | float:
    """act'(a) as a function of the output y = act(a)."""
    match activation:
        case "identity":
            return 1.0
        case "relu":
            return (y > 0).astype(y.dtype)
        case "leaky_relu":
            return np.where(y > 0, 1, LEAKY_SLOPE).astype(y.dtype)
        case "tanh":
            return (1 - y) * (1 + y)  # exact near 1, unlike 1 - y²
        case "elu":
            return np.where(y > 0, 1, y + 1)
    raise ValueError(f"unknown activation {activation!r}")
