"""The protocol of an elementwise map: a bijection of each feature given its parameters.

    forward(x, params)                     -> z, log_det, cache
    inverse(z, params)                     -> x, log_det, cache
    backward(cache, dz, dlog_det)          -> dx, dparams
    inverse_backward(cache, dx, dlog_det)  -> dz, dparams

x, z: (B, d); params: (B, d * parameters_per_feature); log_det: (B,), summed over the features.
Couplings and autoregressive flows share these maps; each owns its gradient once.
"""

from __future__ import annotations

from typing import Any, ClassVar

from npflow.backend import Array
from npflow.params import Component


class ElementwiseMap(Component):
    """An invertible map of every feature by itself; all-zero params make it the identity."""

    features: int
    parameters_per_feature: int
    sequential: ClassVar[str]  # its name in the kernel that inverts feature by feature

    def constants(self) -> Array:
        """What that kernel needs besides params, (n, features)."""
        raise NotImplementedError

    def forward(self, x: Array, params: Array) -> tuple[Array, Array, Any]:
        raise NotImplementedError

    def inverse(self, z: Array, params: Array) -> tuple[Array, Array, Any]:
        raise NotImplementedError

    def backward(self, cache: Any, dz: Array, dlog_det: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def inverse_backward(self, cache: Any, dx: Array, dlog_det: Array) -> tuple[Array, Array]:
        raise NotImplementedError
