"""Masked autoregressive flows: MAF, whose density takes one pass, and IAF, its inverse.

npflow inverts both in one pass, too: MAF samples and IAF evaluates densities at the same cost.
"""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import (
    BatchNorm,
    Bijection,
    Chain,
    Inverse,
    Logit,
    MaskedAutoregressive,
    reverse,
)
from npflow.distributions import Autoregressive, Distribution, GaussianMixture, StandardNormal
from npflow.elementwise import Affine, ElementwiseMap, RationalQuadratic
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.networks import MADE


def maf(
    features: int,
    layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    activation: str = "relu",
    map: str = "affine",
    bound: float | None = None,
    bins: int = 8,
    batch_norm: bool = False,
    components: int = 0,
    logit: Logit | None = None,
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Masked autoregressive flow (arXiv:1705.07057), the order reversed from layer to layer.

    features   : D
    layers     : how many MADEs
    hidden     : the widths of each MADE
    map        : "affine", or "spline" (rational-quadratic, arXiv:1906.04032)
    bound      : affine: the first value of the learned bound of the log-scale (2 unless given);
                 spline: the half width of its box (3 unless given)
    bins       : of the spline
    batch_norm : a batch normalisation before every layer
    components : 0: a standard normal base; else a MADE with so many Gaussians a feature ("MAF MoG")
    logit      : a first layer for bounded data; with it x lies in [0, logit.levels]

    Raises ConfigurationError for a combination that cannot work.
    """
    network = {"hidden": tuple(hidden), "activation": activation, "context": context_features}
    chain: list[Bijection] = [] if logit is None else [logit]
    for k in range(_positive("layers", layers)):
        if batch_norm:
            chain.append(BatchNorm(features))
        if k > 0:
            chain.append(reverse(features))
        chain.append(_layer(elementwise_map(map, features, bound, bins), **network))
    base: Distribution = StandardNormal(features)
    if components:
        if batch_norm:
            chain.append(BatchNorm(features))
        base = mixture_base(features, components, **network)
    return Flow(
        base,
        Chain(tuple(chain)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


def iaf(
    features: int,
    layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    activation: str = "relu",
    map: str = "affine",
    bound: float | None = None,
    bins: int = 8,
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Inverse autoregressive flow (arXiv:1606.04934): each layer is the inverse of MAF's.

    A sample is one pass through masked products without recursion, which suits the reverse KL.
    Arguments as for `maf`.
    """
    network = {"hidden": tuple(hidden), "activation": activation, "context": context_features}
    chain: list[Bijection] = []
    for k in range(_positive("layers", layers)):
        if k > 0:
            chain.append(reverse(features))
        chain.append(Inverse(_layer(elementwise_map(map, features, bound, bins), **network)))
    return Flow(
        StandardNormal(features),
        Chain(tuple(chain)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


def elementwise_map(name: str, features: int, bound: float | None, bins: int) -> ElementwiseMap:
    """ "affine" or "spline". Raises ConfigurationError for another name."""
    if name == "affine":
        return Affine(features, 2.0 if bound is None else bound)
    if name == "spline":
        return RationalQuadratic(features, bins, 3.0 if bound is None else bound)
    raise ConfigurationError(f"unknown map {name!r}; choose affine or spline")


def mixture_base(features: int, components: int, **network: Any) -> Autoregressive:
    """A MADE whose conditionals are mixtures of Gaussians."""
    conditional = GaussianMixture(components)
    parameters = conditional.parameters_per_feature
    return Autoregressive(conditional, MADE(features, parameters_per_feature=parameters, **network))


def _layer(map: ElementwiseMap, **network: Any) -> MaskedAutoregressive:
    parameters = map.parameters_per_feature
    return MaskedAutoregressive(
        map, MADE(map.features, parameters_per_feature=parameters, **network)
    )


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigurationError(f"{name} is {value}; expected 1 or more")
    return value


# Keyword arguments of `maf`, by name.
MAF_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # The paper's models of MNIST: 2 x 1024 hidden units a layer, batch norm, lam = 1e-6.
    "mnist": {
        "features": 784,
        "layers": 5,
        "hidden": (1024, 1024),
        "batch_norm": True,
        "logit": Logit(1e-6),
    },
    "mnist-mog": {
        "features": 784,
        "layers": 5,
        "hidden": (1024, 1024),
        "batch_norm": True,
        "components": 10,
        "logit": Logit(1e-6),
    },
    "toy": {"features": 2, "layers": 8, "hidden": (64, 64)},
}
