"""MADE as a density of its own: every feature given those before it, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from npflow.backend import Array, Backend
from npflow.bijections import BatchNorm, Bijection, Chain, Logit, MaskedAutoregressive
from npflow.distributions import Autoregressive, Bernoulli, Distribution, StandardNormal
from npflow.elementwise import Affine
from npflow.errors import ConfigurationError
from npflow.flow import Flow
from npflow.models.maf import mixture_base
from npflow.networks import MADE


def made(
    features: int,
    hidden: tuple[int, ...] = (500,),
    output: str = "bernoulli",
    *,
    activation: str = "relu",
    components: int = 10,
    bound: float = 2.0,
    direct: bool = False,
    random_order: bool = False,
    random_degrees: bool = False,
    masks: int = 1,
    mask_seed: int = 0,
    batch_norm: bool = False,
    logit: Logit | None = None,
    context_features: int = 0,
    backend: str | Backend = "auto",
    dtype: Any = None,
    seed: int = 0,
) -> Flow:
    """Masked autoencoder for density estimation (arXiv:1502.03509).

    output     : "bernoulli" for data in {0, 1}, "gaussian" (mean and log-scale: one layer of MAF),
                 or "mixture" of Gaussians
    components : of the mixture
    bound      : gaussian: the first value of the learned bound of the log-scale
    direct, random_order, random_degrees, masks, mask_seed : see npflow.networks.MADE; with masks
                 other than 1 see also `ensemble_log_prob`
    batch_norm : gaussian and mixture: a batch normalisation first
    logit      : a first layer for bounded data; with it x lies in [0, logit.levels]

    Raises ConfigurationError for a combination that cannot work.
    """
    network: dict[str, Any] = {
        "hidden": tuple(hidden), "activation": activation, "context": context_features,
        "direct": direct, "random_order": random_order, "random_degrees": random_degrees,
        "masks": masks, "mask_seed": mask_seed,
    }  # fmt: skip
    layers: list[Bijection] = [] if logit is None else [logit]
    if batch_norm:
        layers.append(BatchNorm(features))
    base: Distribution
    match output:
        case "bernoulli":
            if layers:
                raise ConfigurationError("a Bernoulli output takes neither logit nor batch_norm")
            conditional = Bernoulli()
            base = Autoregressive(conditional, MADE(features, parameters_per_feature=1, **network))
        case "gaussian":
            map = Affine(features, bound)
            layers.append(
                MaskedAutoregressive(map, MADE(features, parameters_per_feature=2, **network))
            )
            base = StandardNormal(features)
        case "mixture":
            base = mixture_base(features, components, **network)
        case _:
            raise ConfigurationError(
                f"unknown output {output!r}; choose bernoulli, gaussian or mixture"
            )
    return Flow(
        base,
        Chain(tuple(layers)),
        backend=backend,
        dtype=dtype,
        seed=seed,
        context_features=context_features,
    )


def ensemble_log_prob(
    flow: Flow, x: Array, draws: int, context: Array | None = None, first: int = 0
) -> np.ndarray:
    """log p of the mixture, in equal parts, of the models of `draws` masks, (B,) float64.

    The mean is of likelihoods, log (1/n) sum_k p_k(x), and so a density; a mean of logits is none.
    Leaves the flow at draw 0.
    """
    if draws < 1:
        raise ConfigurationError(f"draws is {draws}; expected 1 or more")
    total = np.full(len(x), -np.inf)
    for number in range(first, first + draws):
        flow.use_masks(number)
        log_prob = flow.backend.to_numpy(flow.log_prob(x, context)).astype(np.float64)
        total = np.logaddexp(total, log_prob)
    flow.use_masks(0)
    return total - np.log(draws)


# Keyword arguments of `made`, by name.
MADE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # MADE's own experiment: binary MNIST, one hidden layer of 500.
    "mnist-binary": {"features": 784, "hidden": (500,), "random_order": True},
    # The same with a new order and new connections in every step, 8 in turn. They share the
    # hidden units, and so direct links, which suit all orders, help.
    "mnist-agnostic": {
        "features": 784,
        "hidden": (500,),
        "random_order": True,
        "random_degrees": True,
        "masks": 8,
        "direct": True,
    },
    # The MAF paper's: grey values in logit space, 2 x 1024.
    "mnist-gaussian": {
        "features": 784,
        "hidden": (1024, 1024),
        "output": "gaussian",
        "batch_norm": True,
        "logit": Logit(1e-6),
    },
    "mnist-mixture": {
        "features": 784,
        "hidden": (1024, 1024),
        "output": "mixture",
        "batch_norm": True,
        "logit": Logit(1e-6),
    },
}
