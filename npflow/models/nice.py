"""NICE, and the configurations of the paper and the report by name."""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import Bijection, Chain, Coupling, Diagonal, Scale
from npflow.distributions import Distribution, Logistic, StandardNormal
from npflow.elementwise import Additive
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.models.realnvp import alternating_masks
from npflow.networks import MLP


def nice(
    features: int,
    couplings: int = 4,
    hidden: tuple[int, ...] = (64, 64),
    *,
    activation: str = "relu",
    masks: str | tuple[tuple[int, ...], tuple[int, ...]] = "parity",
    prior: str = "logistic",
    scale: Scale | None = None,
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Additive couplings and a final diagonal scaling (arXiv:1410.8516).

    prior : "logistic" or "normal"
    scale : a first layer that brings the data to unit range
    The other arguments are those of `npflow.models.realnvp`.

    Raises ConfigurationError for a combination that cannot work.
    """
    if couplings < 1:
        raise ConfigurationError(f"couplings is {couplings}; expected 1 or more")
    priors: dict[str, type[Distribution]] = {"logistic": Logistic, "normal": StandardNormal}
    if prior not in priors:
        raise ConfigurationError(f"unknown prior {prior!r}; choose one of {', '.join(priors)}")
    kept = alternating_masks(features, masks)
    layers: list[Bijection] = [] if scale is None else [scale]
    for k in range(couplings):
        transformed = features - len(kept[k % 2])
        conditioner = MLP(
            len(kept[k % 2]), tuple(hidden), transformed, activation, context_features
        )
        layers.append(Coupling(features, kept[k % 2], Additive(transformed), conditioner))
    layers.append(Diagonal(features))
    return Flow(
        priors[prior](features),  # type: ignore[call-arg]
        Chain(tuple(layers)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


# Keyword arguments of `nice`, by name.
NICE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # Dinh et al., section 5.1 and the authors' code: 4 couplings of 5 x 1000, logistic prior.
    "mnist-paper": {
        "features": 784,
        "couplings": 4,
        "hidden": (1000,) * 5,
        "scale": Scale(1 / 256),
    },
    # The UCSD report: 6 couplings. It gives neither widths nor a prior: the widths are those of its
    # RealNVP, the prior and the masks are the paper's.
    "mnist-report": {
        "features": 784,
        "couplings": 6,
        "hidden": (256, 256),
        "scale": Scale(1 / 256),
    },
}
