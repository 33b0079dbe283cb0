"""What the builders of image flows share."""

from __future__ import annotations

from npflow.bijections import ImageCoupling
from npflow.elementwise import Affine, RationalQuadratic
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.errors import ConfigurationError
from npflow.networks import ConvNet, GatedResNet, ImageNetwork, ResNet

MAPS = ("affine", "spline")
NETWORKS = ("convnet", "resnet", "gated")


def image_coupling(
    shape: tuple[int, int, int],
    kept: tuple[int, ...] | str,
    *,
    width: int,
    network: str = "convnet",
    kernels: tuple[int, ...] = (3, 1, 3),
    blocks: int = 2,
    map: str = "affine",
    bound: float = 2.0,
    bins: int = 8,
    context: int = 0,
) -> ImageCoupling:
    """One coupling of an image (H, W, C) with its network.

    network : "convnet" (Glow's, of these `kernels`), "resnet" (RealNVP's, of so many `blocks`) or
              "gated" (Flow++'s, of so many `blocks`, with the first and the last of the `kernels`
              at its ends), with `width` channels
    map     : "affine", whose log-scales have a learned bound that starts at `bound`; or "spline":
              rational-quadratic with `bins` bins in [-bound, bound]

    Raises ConfigurationError for another map or network.
    """
    channels = shape[2]
    inputs, transformed = (
        (channels, channels) if isinstance(kept, str) else (len(kept), channels - len(kept))
    )
    if map not in MAPS:
        raise ConfigurationError(f"unknown map {map!r}; choose one of {', '.join(MAPS)}")
    elementwise: ElementwiseMap = (
        Affine(transformed, bound)
        if map == "affine"
        else RationalQuadratic(transformed, bins, bound)
    )
    outputs = elementwise.parameters_per_feature * transformed
    conditioner: ImageNetwork
    if network == "convnet":
        conditioner = ConvNet(inputs, width, outputs, context=context, kernels=tuple(kernels))
    elif network == "resnet":
        conditioner = ResNet(inputs, width, outputs, blocks, context)
    elif network == "gated":
        ends = (kernels[0], kernels[-1])
        conditioner = GatedResNet(inputs, width, outputs, blocks, context, kernels=ends)
    else:
        raise ConfigurationError(f"unknown network {network!r}; choose of {', '.join(NETWORKS)}")
    return ImageCoupling(shape, kept, elementwise, conditioner)
