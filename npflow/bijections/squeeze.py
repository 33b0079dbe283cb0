"""Squeeze: pixels become channels, for a look at an image from further away.

Map       z[b, i, j, (2u + v) C + c] = x[b, 2i + u, 2j + v, c]   for u, v in {0, 1}
Inverse   the same with both sides exchanged
Log-det   0: a permutation of the numbers of an image
Gradient  dx is the inverse of dz; dlog_det has no effect
Source    RealNVP, arXiv:1605.08803, section 3.6 and fig. 3

Channel n of z holds every second pixel of a row of every second row. So a mask over the four
channels of a squeezed grey image is a mask over pixels: channels 0 and 3 are a checkerboard, at a
quarter of the cost of a network that sees all pixels (see `checkerboard_channels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.bijections.bijection import Bijection
from npflow.bijections.reshape import check_shape
from npflow.errors import ConfigurationError


class SqueezeCache(NamedTuple):
    """The gradient of a permutation needs nothing."""


@dataclass(eq=False)
class Squeeze(Bijection):
    """(B, H, W, C) -> (B, H/2, W/2, 4C), for shape = (H, W, C).

    Raises ConfigurationError if H or W is odd; ShapeError for an x of another shape.
    """

    shape: tuple[int, int, int]

    def __post_init__(self):
        height, width, channels = self.shape
        if height % 2 or width % 2:
            raise ConfigurationError(
                f"an image of {height} x {width} pixels cannot be squeezed; expected even "
                "sides: pad the image or squeeze less often"
            )
        self.squeezed = (height // 2, width // 2, 4 * channels)

    def forward(self, x, context=None):
        check_shape(self, x, self.shape)
        return self._squeeze(x), self.backend.xp.zeros(len(x), x.dtype), SqueezeCache()

    def inverse(self, z, context=None):
        check_shape(self, z, self.squeezed)
        return self._unsqueeze(z), self.backend.xp.zeros(len(z), z.dtype), SqueezeCache()

    def backward(self, cache, dz, dlog_det):
        return self._unsqueeze(dz), None

    def inverse_backward(self, cache, dx, dlog_det):
        return self._squeeze(dx), None

    def _squeeze(self, x):
        height, width, channels = self.shape
        blocks = x.reshape(-1, height // 2, 2, width // 2, 2, channels)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.squeezed)

    def _unsqueeze(self, z):
        height, width, channels = self.shape
        blocks = z.reshape(-1, height // 2, width // 2, 2, 2, channels)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.shape)
