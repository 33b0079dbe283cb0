"""Spline flows with dense couplings, and configurations by name."""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import Bijection, Chain, Coupling
from npflow.distributions import StandardNormal
from npflow.elementwise import RationalQuadratic
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.models.realnvp import alternating_masks
from npflow.networks import MLP


def spline_coupling(
    features: int,
    couplings: int = 4,
    hidden: tuple[int, ...] = (64, 64),
    *,
    bins: int = 8,
    bound: float = 3.0,
    activation: str = "relu",
    masks: str | tuple[tuple[int, ...], tuple[int, ...]] = "half",
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Rational-quadratic spline couplings with MLPs (arXiv:1906.04032), the kept ones alternating.

    bins  : of every spline
    bound : the half width of the box that the splines act in. Choose it so that the data lies
            inside: beyond it every coupling is the identity
    The other arguments are those of `npflow.models.realnvp`; the autoregressive kind is
    `npflow.models.maf(..., map="spline")`.

    Raises ConfigurationError for a combination that cannot work.
    """
    if couplings < 1:
        raise ConfigurationError(f"couplings is {couplings}; expected 1 or more")
    kept = alternating_masks(features, masks)
    layers: list[Bijection] = []
    for k in range(couplings):
        transformed = features - len(kept[k % 2])
        spline = RationalQuadratic(transformed, bins, bound)
        outputs = spline.parameters_per_feature * transformed
        conditioner = MLP(len(kept[k % 2]), tuple(hidden), outputs, activation, context_features)
        layers.append(Coupling(features, kept[k % 2], spline, conditioner))
    return Flow(
        StandardNormal(features),
        Chain(tuple(layers)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


# Keyword arguments of `spline_coupling`, by name.
SPLINE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # 2-D toy data: nearly all of it, and of the standard normal, lies in [-5, 5]^2.
    "toy": {"features": 2, "couplings": 4, "hidden": (64, 64), "bins": 8, "bound": 5.0},
}
