"""Coupling: some features pass unchanged and decide how the others are mapped.

Map       x_a, x_b = split(x)                               F1
          params = conditioner(x_a, context)                F2
          z_b, log_det = map(x_b; params)                   F3
          z = merge(x_a, z_b)                               F4
Inverse   x_b = map^-1(z_b; params): the kept half is the same in x and z, so params are too
Log-det   the Jacobian is block-triangular with an identity block: log|det J| = log_det of the map
Gradient  dz_a, dz_b = split(dz)                            B4
          dx_b, dparams = map.backward(dz_b, dlog_det)      B3
          dx_a = dz_a + conditioner.backward(dparams)       B2
          dx = merge(dx_a, dx_b)                            B1
Source    NICE, arXiv:1410.8516, section 3.2; RealNVP, arXiv:1605.08803, eq. 4-9

Cost: one product with each weight of the conditioner forward, two back. Cache: the conditioner's
activations and the map's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npflow.bijections.bijection import Bijection
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.errors import ConfigurationError
from npflow.networks.mlp import MLP


class CouplingCache(NamedTuple):
    conditioner: Any  # the conditioner's cache
    map: Any  # the map's cache


@dataclass(eq=False)
class Coupling(Bijection):
    """Maps the features not in `kept` by `map`, with parameters computed from the kept ones.

    features    : D
    kept        : the indices of the features that pass unchanged (see npflow.bijections.masks)
    map         : an elementwise map over the D - len(kept) others
    conditioner : a network from len(kept) inputs to map.parameters_per_feature * (D - len(kept))

    Raises ConfigurationError if these do not fit together.
    """

    features: int
    kept: tuple[int, ...]
    map: ElementwiseMap
    conditioner: MLP

    def __post_init__(self):
        kept = sorted(set(self.kept))
        transformed = self.features - len(kept)
        fits = kept and transformed > 0 and kept[0] >= 0 and kept[-1] < self.features
        if not fits or len(kept) != len(self.kept):
            raise ConfigurationError(
                f"kept holds {len(self.kept)} indices for {self.features} features; expected "
                f"different ones from 0 to {self.features - 1} that leave a feature to transform"
            )
        outputs = transformed * self.map.parameters_per_feature
        if self.conditioner.inputs != len(kept) or self.conditioner.outputs != outputs:
            raise ConfigurationError(
                f"the conditioner maps {self.conditioner.inputs} to {self.conditioner.outputs}; "
                f"this coupling needs {len(kept)} to {outputs}"
            )

    def attached(self):
        xp = self.backend.xp
        kept = np.array(self.kept, np.int64)
        self._kept = xp.asarray(kept)
        self._transformed = xp.asarray(np.setdiff1d(np.arange(self.features), kept))

    def forward(self, x, context=None):
        kernels = self.backend.kernels
        x_a, x_b = kernels.split(x, self._kept, self._transformed)  # F1
        params, conditioner_cache = self.conditioner.forward(x_a, context)  # F2
        z_b, log_det, map_cache = self.map.forward(x_b, params)  # F3
        z = kernels.merge(x_a, z_b, self._kept, self._transformed)  # F4
        return z, log_det, CouplingCache(conditioner_cache, map_cache)

    def inverse(self, z, context=None):
        kernels = self.backend.kernels
        x_a, z_b = kernels.split(z, self._kept, self._transformed)
        params, conditioner_cache = self.conditioner.forward(x_a, context)
        x_b, log_det, map_cache = self.map.inverse(z_b, params)
        x = kernels.merge(x_a, x_b, self._kept, self._transformed)
        return x, log_det, CouplingCache(conditioner_cache, map_cache)

    def backward(self, cache, dz, dlog_det):
        return self._backward(cache, dz, dlog_det, self.map.backward)

    def inverse_backward(self, cache, dx, dlog_det):
        return self._backward(cache, dx, dlog_det, self.map.inverse_backward)

    def _backward(self, cache, dz, dlog_det, map_backward):
        kernels = self.backend.kernels
        dz_a, dz_b = kernels.split(dz, self._kept, self._transformed)  # B4
        dx_b, dparams = map_backward(cache.map, dz_b, dlog_det)  # B3
        dx_a, dcontext = self.conditioner.backward(cache.conditioner, dparams)  # B2
        dx = kernels.merge_add(dx_a, dz_a, dx_b, self._kept, self._transformed)  # B2, B1
        return dx, dcontext
