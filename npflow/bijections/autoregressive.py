"""Masked autoregressive flow: each feature is mapped with parameters from the features before it.

Map       params = network(x, context); those of feature i depend on x_{<i} alone     F1
          z, log_det = map(x; params)                                                 F2
Inverse   x_i = map^-1(z_i; params_i(x_{<i})) for i = 0, 1, ...: one pass through the network, in
          which each unit is computed once, when the features that it sees are known
Log-det   the Jacobian is triangular: log|det J| = log_det of the map
Gradient  dx, dparams = map.backward(dz, dlog_det)                                    B2
          dx += network.backward(dparams)                                             B1
          Of the inverse: v = the whole gradient that reaches x solves a triangular system, from
          the last feature to the first, in one pass through the transposed network;
          dz, dparams = map.inverse_backward(v, dlog_det); network.backward(dparams) for the weights
Source    MAF, arXiv:1705.07057, eq. 2-5; IAF, arXiv:1606.04934, eq. 9-11, is its Inverse

Cost: half of a dense network's forward, the same for the inverse. Cache: the network's activations
and the map's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.errors import ConfigurationError
from npflow.networks.made import MADE, MADECache


class MaskedAutoregressiveCache(NamedTuple):
    network: MADECache
    map: Any  # the map's cache


@dataclass(eq=False)
class MaskedAutoregressive(Bijection):
    """`map` over all features, with parameters from `network`.

    map     : an elementwise map over the D features
    network : a MADE from D features to map.parameters_per_feature parameters each

    Raises ConfigurationError if these do not fit together.
    """

    map: ElementwiseMap
    network: MADE

    def __post_init__(self):
        wanted = (self.map.features, self.map.parameters_per_feature)
        if (self.network.features, self.network.parameters_per_feature) != wanted:
            raise ConfigurationError(
                f"the network gives {self.network.parameters_per_feature} parameters for each of "
                f"{self.network.features} features; this map needs {wanted[1]} for {wanted[0]}"
            )

    def forward(self, x, context=None):
        params, network_cache = self.network.forward(x, context)  # F1
        z, log_det, map_cache = self.map.forward(x, params)  # F2
        return z, log_det, MaskedAutoregressiveCache(network_cache, map_cache)

    def inverse(self, z, context=None):
        x, params, network_cache = self.network.inverse(
            z, context, self.map.sequential, self.map.constants()
        )
        x, log_det, map_cache = self.map.inverse(z, params)
        return x, log_det, MaskedAutoregressiveCache(network_cache, map_cache)

    def backward(self, cache, dz, dlog_det):
        dx, dparams = self.map.backward(cache.map, dz, dlog_det)  # B2
        dx_network, dcontext = self.network.backward(cache.network, dparams)  # B1
        dx += dx_network
        return dx, dcontext

    def inverse_backward(self, cache, dx, dlog_det):
        v = self.network.inverse_backward(
            cache.network, dx, dlog_det, self.map.sequential, self.map.constants()
        )
        dz, dparams = self.map.inverse_backward(cache.map, v, dlog_det)
        _, dcontext = self.network.backward(cache.network, dparams)
        return dz, dcontext

    def inverse_by_passes(self, z: Array, context: Array | None = None) -> Array:
        """x as other libraries find it: D passes through the network, of which pass i settles
        feature i. For tests and timings beside `inverse`.
        """
        x = self.backend.xp.zeros_like(z)
        for _ in range(self.map.features):
            params, _ = self.network.forward(x, context)
            x, _, _ = self.map.inverse(z, params)
        return x
