"""A linear layer whose weight is masked by a staircase: the layer of MADE with sorted degrees.

Shapes: x (B, n_in), weight W (n_in, P n), bias (P n,), reach (n,), nondecreasing. The columns lie
in P parts of n, and column j of each part sees the inputs before reach[j] alone:

    M_ij = 1 where i < reach[j mod n], else 0

W and its gradient are zero outside the mask: so they start, and so these functions leave them.
Source: MADE, arXiv:1502.03509, eq. 8-13; sorting the units by degree turns its masks into
staircases, whose zero blocks (about half of W) the compiled versions skip.
"""

import numpy as np
from numpy.typing import NDArray

from .linear import linear_backward, linear_forward


def staircase(reach: NDArray, n_in: int, n_out: int) -> NDArray:
    """The mask M (n_in, n_out) of zeros and ones."""
    steps = np.tile(reach, n_out // len(reach))
    return np.arange(n_in)[:, None] < steps


def masked_linear_forward(
    x: NDArray, weight: NDArray, bias: NDArray, reach: NDArray, activation: str
) -> NDArray:
    """y = act(x (W ⊙ M) + b), (B, n_out); activations as in `linear_forward`."""
    return linear_forward(x, weight * staircase(reach, *weight.shape), bias, activation)


def masked_linear_backward(
    dy: NDArray,
    x: NDArray,
    y: NDArray,
    weight: NDArray,
    reach: NDArray,
    activation: str,
    dweight: NDArray,
    dbias: NDArray,
) -> NDArray:
    """Gradient of `masked_linear_forward`, as in `linear_backward` with dW += (xᵀ da) ⊙ M.

    dweight and dbias are added to in place; dx (B, n_in) is returned. dy may be overwritten.
    """
    mask = staircase(reach, *weight.shape)
    product = np.zeros_like(dweight)
    dx = linear_backward(dy, x, y, weight * mask, activation, product, dbias)
    dweight += product * mask
    return dx
