"""Glow: actnorm, invertible 1x1 convolution and affine coupling, on several scales.

Source: Glow, arXiv:1807.03039, fig. 2 and section 3.
"""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import (
    ActNorm,
    Chain,
    FactorOut,
    InvertibleConv1x1,
    Logit,
    Reshape,
    Squeeze,
    half,
)
from npflow.distributions import StandardNormal
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.models.dequantizer import named_dequantizer
from npflow.models.image import image_coupling


def glow(
    shape: tuple[int, int, int] = (28, 28, 1),
    levels: int = 2,
    steps: int = 8,
    width: int = 64,
    *,
    form: str = "dense",
    learned_prior: bool = True,
    network: str = "convnet",
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
    """A Glow of `levels` scales with `steps` steps of flow each.

    shape            : (H, W, C) of an image x in [0, pixel_levels]
    width            : channels of the couplings' networks
    form             : of the 1x1 convolutions, "dense" or "plu"
    learned_prior    : what is factored out is Gaussian (or a spline of it) given the rest; else it
                       is independent of it
    network, kernels, blocks, map, bound, bins : see `image_coupling`
    lam              : of the logit before all; None: no logit, for images that are real numbers
    dequantization   : of integer images: "uniform", or "variational", which is learned
    context_features : features of a context such as a label, 0 for none

    `flow.initialize(batch)` sets the actnorms: do that once before training. Raises
    ConfigurationError if the sides of the image cannot be halved `levels` times.
    """
    if levels < 1 or steps < 1:
        raise ConfigurationError(f"levels is {levels} and steps {steps}; expected 1 or more each")
    if len(shape) != 3:
        raise ConfigurationError(f"shape is {shape}; expected height, width and channels")

    def add_coupling() -> None:
        coupling = image_coupling(
            image, half(image[2]), width=width, network=network, kernels=kernels, blocks=blocks,
            map=map, bound=bound, bins=bins, context=context_features,
        )  # fmt: skip
        layers.append(coupling)

    image = shape
    layers: list[Any] = [] if lam is None else [Logit(lam, pixel_levels)]
    for level in range(levels):
        squeeze = Squeeze(image)
        image = squeeze.squeezed
        layers.append(squeeze)
        for step in range(steps):
            mix = InvertibleConv1x1(image[2], form, seed=level * steps + step)
            layers += [ActNorm(image[2]), mix]
            add_coupling()
        if level < levels - 1:
            if learned_prior:
                add_coupling()
            layers.append(FactorOut(image))
            image = (*image[:2], len(half(image[2])))
    features = image[0] * image[1] * image[2]
    layers.append(Reshape(image, (features,)))
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


# Keyword arguments of `glow`, by name.
GLOW_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # The paper's, small: its CIFAR-10 model has 3 levels, 32 steps and 512 channels.
    "mnist-affine": {"levels": 2, "steps": 8, "width": 64},
}
