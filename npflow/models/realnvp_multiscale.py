"""RealNVP on several scales: checkerboards of pixels, squeeze, channels, factoring out.

Source: RealNVP, arXiv:1605.08803, section 3.6 and fig. 3.
"""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import (
    ActNorm,
    Chain,
    FactorOut,
    Logit,
    Reshape,
    Squeeze,
    checkerboard_channels,
    half,
)
from npflow.distributions import StandardNormal
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.models.dequantizer import named_dequantizer
from npflow.models.image import image_coupling


def realnvp_multiscale(
    shape: tuple[int, int, int] = (28, 28, 1),
    checkerboards: tuple[int, ...] = (3, 4),
    channels: tuple[int, ...] = (3, 3),
    *,
    width: int | tuple[int, ...] = 32,
    squeezed_checkerboards: bool = False,
    learned_prior: bool = False,
    network: str = "resnet",
    kernels: tuple[int, ...] = (3, 1, 3),
    blocks: int = 2,
    map: str = "affine",
    bound: float = 2.0,
    bins: int = 8,
    lam: float | None = 1e-3,
    pixel_levels: float = 256.0,
    dequantization: str = "uniform",
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Couplings with checkerboard masks, then with channel masks, at each scale.

    shape          : (H, W, C) of an image x in [0, pixel_levels]
    checkerboards  : how many couplings with alternating checkerboards, for each scale
    channels       : how many with alternating halves of the channels after the scale's squeeze;
                     behind them, at all scales but the last, half of the channels is factored out
    width          : channels of the networks; or one number for each number of squeezes so far
    squeezed_checkerboards : take checkerboards after the squeeze, as masks of its channels: the
                     networks then see a pixel in four and cost a quarter
    learned_prior  : what is factored out is Gaussian (or a spline of it) given the rest
    network, kernels, blocks, map, bound, bins : see `image_coupling`
    lam            : of the logit before all; None: no logit, for images that are real numbers
    dequantization : of integer images: "uniform", or "variational", which is learned
    context_features : features of a context such as a label, 0 for none

    An ActNorm before each coupling takes the place of the paper's batch norm, which makes the
    density of an image depend on the others of its batch: `flow.initialize(batch)` sets them once.
    Raises ConfigurationError if the sides of the image cannot be halved at every scale.
    """
    if len(checkerboards) != len(channels) or not checkerboards:
        raise ConfigurationError(
            f"checkerboards is {checkerboards} and channels {channels}; expected a number for each "
            "scale in both"
        )
    scales = len(channels)
    widths = (width,) * (scales + 1) if isinstance(width, int) else tuple(width)
    if len(widths) != scales + 1:
        raise ConfigurationError(
            f"width is {width}; expected one number, or {scales + 1}: for 0 to {scales} squeezes"
        )
    image = shape
    layers: list[Any] = [] if lam is None else [Logit(lam, pixel_levels)]

    def add_coupling(kept: tuple[int, ...] | str, squeezes: int, normalize: bool = True) -> None:
        if normalize:
            layers.append(ActNorm(image[2]))
        coupling = image_coupling(
            image, kept, width=widths[squeezes], network=network, kernels=kernels, blocks=blocks,
            map=map, bound=bound, bins=bins, context=context_features,
        )  # fmt: skip
        layers.append(coupling)

    for scale in range(scales):
        if not squeezed_checkerboards:
            for i in range(checkerboards[scale]):
                add_coupling("checkerboard-flipped" if i % 2 else "checkerboard", scale)
        squeeze = Squeeze(image)
        layers.append(squeeze)
        if squeezed_checkerboards:
            pixels, image = image[2], squeeze.squeezed
            for i in range(checkerboards[scale]):
                add_coupling(checkerboard_channels(pixels, flip=bool(i % 2)), scale + 1)
        image = squeeze.squeezed
        for i in range(channels[scale]):
            add_coupling(half(image[2], flip=bool(i % 2)), scale + 1)
        if scale < scales - 1:
            if learned_prior:
                add_coupling(half(image[2]), scale + 1, normalize=False)
            layers.append(FactorOut(image))
            image = (*image[:2], len(half(image[2])))
    layers.append(Reshape(image, (image[0] * image[1] * image[2],)))
    return Flow(
        StandardNormal(shape[0] * shape[1] * shape[2]),
        Chain(tuple(layers)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
        shape=shape,
        dequantizer=named_dequantizer(dequantization, shape, pixel_levels),
    )


# Keyword arguments of `realnvp_multiscale`, by name.
REALNVP_MULTISCALE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # The paper's structure in a small size: 3 checkerboards, 3 halves, 4 checkerboards.
    "mnist-paper": {"checkerboards": (3, 4), "channels": (3, 0), "network": "resnet"},
    # The UvA tutorial's multi-scale flow: gated residual networks of 3 blocks, widths by scale.
    "mnist-uva": {
        "checkerboards": (2, 0),
        "channels": (2, 4),
        "width": (32, 48, 64),
        "network": "gated",
        "blocks": 3,
    },
    # Ours, for the most bits a CPU-hour. Given its neighbours a pixel is black or grey: splines
    # fit both in one coupling, where affine maps need many. Checkerboards as channels cost a
    # quarter, and many small networks do more than few large ones.
    "mnist-spline": {
        "checkerboards": (8, 8),
        "channels": (0, 0),
        "squeezed_checkerboards": True,
        "learned_prior": True,
        "network": "gated",
        "blocks": 1,
        "kernels": (5, 1),
        "map": "spline",
        "bound": 4.0,
    },
}
