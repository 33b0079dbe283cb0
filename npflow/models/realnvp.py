"""RealNVP with dense couplings, and the configurations of the papers and reports by name."""

from __future__ import annotations

from typing import Any

from npflow.backend import Backend
from npflow.bijections import (
    BatchNorm,
    Bijection,
    Chain,
    Coupling,
    Logit,
    checkerboard,
    half,
    parity,
)
from npflow.distributions import StandardNormal
from npflow.elementwise import Affine
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.networks import MLP

MASKS = {"half": half, "parity": parity}


def realnvp(
    features: int,
    couplings: int = 8,
    hidden: tuple[int, ...] = (64, 64),
    *,
    activation: str = "relu",
    masks: str | tuple[tuple[int, ...], tuple[int, ...]] = "half",
    bound: float = 1.0,
    learn_bound: bool = True,
    batch_norm: bool = False,
    logit: Logit | None = None,
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Affine couplings with MLPs (arXiv:1605.08803), the kept features alternating.

    features    : D
    couplings   : how many
    hidden      : the widths of each coupling's MLP
    masks       : "half", "parity", or the two sets of kept indices that alternate
    bound       : the bound of the log-scale (its first value if learn_bound)
    batch_norm  : a batch normalisation before every coupling
    logit       : a first layer for bounded data; with it x lies in [0, logit.levels]

    Raises ConfigurationError for a combination that cannot work.
    """
    if couplings < 1:
        raise ConfigurationError(f"couplings is {couplings}; expected 1 or more")
    kept = alternating_masks(features, masks)
    layers: list[Bijection] = [] if logit is None else [logit]
    for k in range(couplings):
        if batch_norm:
            layers.append(BatchNorm(features))
        transformed = features - len(kept[k % 2])
        conditioner = MLP(
            len(kept[k % 2]), tuple(hidden), 2 * transformed, activation, context_features
        )
        layers.append(
            Coupling(features, kept[k % 2], Affine(transformed, bound, learn_bound), conditioner)
        )
    return Flow(
        StandardNormal(features),
        Chain(tuple(layers)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


def alternating_masks(
    features: int, masks: str | tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices kept by even and by odd couplings. Raises ConfigurationError if unknown."""
    if features < 2:
        raise ConfigurationError(f"a coupling needs 2 features or more, not {features}")
    if not isinstance(masks, str):
        return masks
    if masks not in MASKS:
        raise ConfigurationError(
            f"unknown masks {masks!r}; choose one of {', '.join(MASKS)} or give two index tuples"
        )
    return MASKS[masks](features), MASKS[masks](features, flip=True)


# Keyword arguments of `realnvp`, by name.
REALNVP_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # 2-D toy data: 8 couplings of 64 x 64 with a learned bound.
    "toy": {"features": 2, "couplings": 8, "hidden": (64, 64), "bound": 2.0},
    # The UCSD report's toy model: 5 couplings of 32 x 32. Its code bounds no log-scale; 1 would be
    # too tight for its data, whose narrowest direction has a deviation of 1/40.
    "toy-report": {
        "features": 2,
        "couplings": 5,
        "hidden": (32, 32),
        "bound": 5.0,
        "learn_bound": False,
    },
    # The UvA assignment: checkerboard masks, 784-1024-1024, plain tanh. Its code multiplies the
    # masked inputs and outputs by zero; here they are not there at all, which is the same function.
    "mnist-uva": {
        "features": 784,
        "couplings": 8,
        "hidden": (1024, 1024),
        "masks": (checkerboard(28, 28), checkerboard(28, 28, flip=True)),
        "learn_bound": False,
        "logit": Logit(5e-6),
    },
    # Ours, of the same kind. A larger lam costs a little where a pixel is uncertain and saves much
    # more where it is always black: there log(u) of uniform noise u has an exponential's long tail,
    # which couplings of independent noise cannot make normal, and log(lam' + u) has a short one.
    "mnist-best": {
        "features": 784,
        "couplings": 8,
        "hidden": (1024, 1024),
        "masks": (checkerboard(28, 28), checkerboard(28, 28, flip=True)),
        "logit": Logit(1e-3),
    },
    # The UCSD report's MNIST model: batch norm and halves, 256 x 256, plain tanh.
    "mnist-report": {
        "features": 784,
        "couplings": 5,
        "hidden": (256, 256),
        "learn_bound": False,
        "batch_norm": True,
        "logit": Logit(1e-5),
    },
}
