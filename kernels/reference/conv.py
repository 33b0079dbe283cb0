"""Convolution of channels-last images with its activation: forward and hand-written gradient.

Every output pixel sees a patch of k x k pixels around it, zeros beyond the border. With the patches
laid out as rows a convolution is a linear layer, so its gradient is that of linear.py; only the way
back from patches to pixels is new: the adjoint of taking patches adds them where they were taken.
"""

import numpy as np
from numpy.typing import NDArray

from .linear import linear_backward, linear_forward


def conv_forward(x: NDArray, weight: NDArray, bias: NDArray, activation: str) -> NDArray:
    """y[b, i, j] = act(sum_{u, v} x[b, i + u - k//2, j + v - k//2] W[u, v] + bias).

    x (B, H, W, C_in), weight (k, k, C_in, C_out) with an odd k, bias (C_out,); returns
    y (B, H, W, C_out). For the activations see `linear_forward`.
    """
    k, _, _, n_out = weight.shape
    y = linear_forward(patches(x, k), weight.reshape(-1, n_out), bias, activation)
    return y.reshape(*x.shape[:3], n_out)


def conv_backward(
    dy: NDArray,
    x: NDArray,
    y: NDArray,
    weight: NDArray,
    activation: str,
    dweight: NDArray,
    dbias: NDArray,
) -> NDArray:
    """Gradient of `conv_forward`, given dy = dL/dy and the output y.

    With a the sum that the activation is applied to,

        da = dy ⊙ act'(a)        dbias += Σ da
        dW[u, v] += Σ_{b, i, j} x[b, i + u - k//2, j + v - k//2]ᵀ da[b, i, j]
        dx[b, i, j] = Σ_{u, v} da[b, i - u + k//2, j - v + k//2] W[u, v]ᵀ

    dweight and dbias are added to in place; dx is returned. dy may be overwritten.
    """
    k, _, _, n_out = weight.shape
    rows = (-1, n_out)
    dpatches = linear_backward(
        dy.reshape(rows), patches(x, k), y.reshape(rows), weight.reshape(rows), activation,
        dweight.reshape(rows), dbias,
    )  # fmt: skip
    return add_patches(dpatches, k, x.shape)


def patches(x: NDArray, k: int) -> NDArray:
    """The k x k pixels around each pixel: (B H W, k k C)."""
    padded = np.pad(x, [(0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, k * k * x.shape[3])


def add_patches(dpatches: NDArray, k: int, shape: tuple[int, ...]) -> NDArray:
    """The adjoint of `patches`: each number is added to the pixel that it came from."""
    batch, height, width, channels = shape
    dpatches = dpatches.reshape(batch, height, width, k, k, channels)
    padded = np.zeros((batch, height + k - 1, width + k - 1, channels), dpatches.dtype)
    for u in range(k):
        for v in range(k):
            padded[:, u : u + height, v : v + width] += dpatches[:, :, :, u, v]
    return padded[:, k // 2 : k // 2 + height, k // 2 : k // 2 + width].copy()
