"""Which features or channels a coupling keeps: index tuples for `kept`."""

from __future__ import annotations

import numpy as np


def half(features: int, flip: bool = False) -> tuple[int, ...]:
    """The first half of the features (the larger one if odd); with flip, the rest."""
    first = (features + 1) // 2
    return tuple(range(first, features)) if flip else tuple(range(first))


def parity(features: int, flip: bool = False) -> tuple[int, ...]:
    """The even features; with flip, the odd ones."""
    return tuple(range(int(flip), features, 2))


def checkerboard(height: int, width: int, flip: bool = False) -> tuple[int, ...]:
    """The pixels (i, j), row by row, with i + j even; with flip, odd (arXiv:1605.08803, fig. 3)."""
    i, j = np.divmod(np.arange(height * width), width)
    return tuple(int(k) for k in np.flatnonzero((i + j) % 2 == int(flip)))


def checkerboard_channels(channels: int, flip: bool = False) -> tuple[int, ...]:
    """A checkerboard of pixels as channels of a squeezed image with 4 * channels channels."""
    corners = (1, 2) if flip else (0, 3)
    return tuple(corner * channels + c for corner in corners for c in range(channels))
