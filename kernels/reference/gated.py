"""The pieces of a gated residual network: concatenated ELU, and a gated sum normalised by pixel.

A row is a pixel: the last axis are its channels. Source: Flow++, arXiv:1902.00275, section 3.2;
concatenated ELU as in PixelCNN++, arXiv:1701.05517; layer norm arXiv:1607.06450, eq. 4.
"""

import numpy as np
from numpy.typing import NDArray


def concat_elu_forward(x: NDArray) -> NDArray:
    """y = [elu(x) | elu(-x)], elu(a) = a where a > 0, else exp(a) - 1: (..., C) -> (..., 2C)."""
    both = np.concatenate([x, -x], axis=-1)
    return np.where(both > 0, both, np.expm1(np.minimum(both, 0)))


def concat_elu_backward(dy: NDArray, y: NDArray) -> NDArray:
    """Gradient of `concat_elu_forward` from its output y (..., 2C); returns dx (..., C).

    With [p | n] = y:  dx = dp elu'(x) - dn elu'(-x),  elu' = 1 where elu > 0, else elu + 1.
    """
    dp, dn = np.split(dy * np.where(y > 0, 1, y + 1), 2, axis=-1)
    return dp - dn


def gated_norm_forward(
    h: NDArray, params: NDArray, gain: NDArray, shift: NDArray, epsilon: float
) -> NDArray:
    """y = gain s_hat + shift, s_hat = (s - mean(s)) / sqrt(var(s) + eps), s = h + v sigmoid(g).

    h (..., C), params [v | g] (..., 2C), gain, shift (C,); mean and (biased) variance are those of
    a pixel's channels. Returns y (..., C).
    """
    _, normalized, _ = _normalize(h, params, epsilon)
    return gain * normalized + shift


def gated_norm_backward(
    dy: NDArray,
    h: NDArray,
    params: NDArray,
    gain: NDArray,
    epsilon: float,
    dgain: NDArray,
    dshift: NDArray,
) -> tuple[NDArray, NDArray]:
    """Gradient of `gated_norm_forward`. Returns dh (..., C) and dparams (..., 2C).

    With ds_hat = gain dy and sigma = sqrt(var(s) + eps), means over a pixel's channels:

        dgain += Σ dy s_hat        dshift += Σ dy
        ds = (ds_hat - mean(ds_hat) - s_hat mean(ds_hat s_hat)) / sigma
        dh = ds        dv = ds sigmoid(g)        dg = ds v sigmoid(g) (1 - sigmoid(g))
    """
    gate, normalized, sigma = _normalize(h, params, epsilon)
    value = params[..., : h.shape[-1]]
    pixels = tuple(range(h.ndim - 1))
    dgain += (dy * normalized).sum(axis=pixels)
    dshift += dy.sum(axis=pixels)
    dnormalized = gain * dy
    mean = dnormalized.mean(axis=-1, keepdims=True)
    projection = (dnormalized * normalized).mean(axis=-1, keepdims=True)
    ds = (dnormalized - mean - normalized * projection) / sigma
    return ds, np.concatenate([ds * gate, ds * value * gate * (1 - gate)], axis=-1)


def _normalize(h: NDArray, params: NDArray, epsilon: float) -> tuple[NDArray, NDArray, NDArray]:
    """sigmoid(g), s_hat and sigma."""
    value, gate = np.split(params, 2, axis=-1)
    e = np.exp(-np.abs(gate))
    gate = np.where(gate >= 0, 1, e) / (1 + e)
    s = h + value * gate
    sigma = np.sqrt(s.var(axis=-1, keepdims=True) + epsilon)
    return gate, (s - s.mean(axis=-1, keepdims=True)) / sigma, sigma
