"""Variational dequantization of images: a small flow of squeezed couplings that sees the image.

Source: Flow++, arXiv:1902.00275, section 3.1; its network is larger.
"""

from __future__ import annotations

import math

from npflow.bijections import Chain, Reshape, Squeeze, checkerboard_channels
from npflow.dequantization import VariationalDequantization
from npflow.errors import ConfigurationError
from npflow.models.image import image_coupling

DEQUANTIZATIONS = ("uniform", "variational")


def dequantizer(
    shape: tuple[int, int, int], couplings: int = 4, width: int = 32, *, levels: int = 256
) -> VariationalDequantization:
    """Noise for integer images (H, W, C) from 0 to levels - 1, given the image.

    The couplings are affine and transform alternating checkerboards of the squeezed noise; their
    ConvNets of `width` channels take the squeezed image as context. No layer has to be initialized
    from data. Raises ConfigurationError if a side is odd or there is no coupling.
    """
    if couplings < 1:
        raise ConfigurationError(f"couplings is {couplings}; expected 1 or more")
    squeeze = Squeeze(shape)
    squeezed = squeeze.squeezed
    masks = [checkerboard_channels(shape[2], flip=bool(i % 2)) for i in range(couplings)]
    layers = [image_coupling(squeezed, m, width=width, context=squeezed[2]) for m in masks]
    flat = Reshape(squeezed, (math.prod(squeezed),))
    return VariationalDequantization(
        shape, Chain((squeeze, *layers, flat)), levels, context_layers=(Squeeze(shape),)
    )


def named_dequantizer(
    name: str, shape: tuple[int, int, int], levels: float
) -> VariationalDequantization | None:
    """Of a flow whose dequantization is "variational"; None for "uniform" noise.

    Raises ConfigurationError for another name.
    """
    if name not in DEQUANTIZATIONS:
        raise ConfigurationError(
            f"unknown dequantization {name!r}; choose {' or '.join(DEQUANTIZATIONS)}"
        )
    return None if name == "uniform" else dequantizer(shape, levels=int(levels))
