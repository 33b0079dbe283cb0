"""Factoring out: half of the channels are latents already, the others go on.

Map       z, factored = split(x)
Inverse   x = join(z, factored)
Log-det   0
Gradient  dx = join(dz, dfactored)
Source    RealNVP, arXiv:1605.08803, section 3.6 (multi-scale); Glow, arXiv:1807.03039, section 3

`Chain` carries what was factored out to its end: z = [rest | last factored out | ... | first], one
array with every latent. So inverse(forward(x)) = x, and log p is that of all of x. A Gaussian for
the factored half that depends on the other one (Glow's learned prior) is an affine coupling before
this layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from npflow.backend import Array
from npflow.bijections.reshape import check_shape
from npflow.errors import ConfigurationError
from npflow.params import Component


@dataclass(eq=False)
class FactorOut(Component):
    """The last C // 2 channels of (B, H, W, C), shape = (H, W, C), leave a chain here.

    What leaves is (B, features). Raises ConfigurationError if there is only one channel; ShapeError
    for an x of another shape.
    """

    shape: tuple[int, int, int]

    def __post_init__(self):
        height, width, channels = self.shape
        if channels < 2:
            raise ConfigurationError(f"{channels} channel cannot be halved; squeeze first")
        self._kept = channels - channels // 2
        self.features = height * width * (channels // 2)

    def split(self, x: Array) -> tuple[Array, Array]:
        """What goes on (B, H, W, C - C//2), and what is factored out (B, features)."""
        check_shape(self, x, self.shape)
        kept = self.backend.xp.ascontiguousarray(x[..., : self._kept])
        return kept, x[..., self._kept :].reshape(len(x), self.features)

    def join(self, kept: Array, factored: Array) -> Array:
        """The inverse of split, and its gradient."""
        check_shape(self, kept, (*self.shape[:2], self._kept))
        factored = factored.reshape(*kept.shape[:3], -1)
        return self.backend.xp.concatenate([kept, factored], axis=3)
