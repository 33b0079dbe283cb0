"""The protocol of a layer: how to write a bijection.

    forward(x, context)               -> z, log_det, cache     data to latent: normalizing
    inverse(z, context)               -> x, log_det, cache     latent to data
    backward(cache, dz, dlog_det)     -> dx, dcontext           gradient of forward
    inverse_backward(cache, dx, dlog_det) -> dz, dcontext       gradient of inverse

- x, z: (B, ...); log_det: (B,), log|det J| of the map just applied: inverse's is minus forward's.
- Two cotangents, always: dz of z and dlog_det of log_det. No loss is wired into a layer.
- The cache is a NamedTuple of what the gradient needs. Both directions make the same one at the
  same x, so a chain may throw caches away and make them anew from either end (chain.py).
- Gradients of parameters are added to `parameter.grad`; gradients of activations are returned.
- dz and dx belong to the callee: backward may overwrite them. Nothing else is changed; no
  state hides on a layer.
- A new flow is the identity as far as it can be: conditioners end in a layer of zeros.
"""

from __future__ import annotations

from typing import Any, ClassVar

from npflow.backend import Array
from npflow.params import Component

Cache = Any


class Bijection(Component):
    """An invertible, differentiable map x <-> z with a tractable log|det J|."""

    invert_refusal: ClassVar[str | None] = None  # why the chain's `invert` schedule cannot be used

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array, Cache]:
        """z, log_det, cache."""
        raise NotImplementedError

    def training_forward(
        self, x: Array, context: Array | None = None
    ) -> tuple[Array, Array, Cache]:
        """forward as training sees it; differs only where batch statistics are used."""
        return self.forward(x, context)

    def inverse(self, z: Array, context: Array | None = None) -> tuple[Array, Array, Cache]:
        """x, log_det, cache."""
        raise NotImplementedError

    def backward(self, cache: Cache, dz: Array, dlog_det: Array) -> tuple[Array, Array | None]:
        """dx, dcontext."""
        raise NotImplementedError

    def inverse_backward(
        self, cache: Cache, dx: Array, dlog_det: Array
    ) -> tuple[Array, Array | None]:
        """dz, dcontext."""
        raise NotImplementedError

    def initialize(self, x: Array, context: Array | None = None) -> Array:
        """Set data-dependent parameters from x, and return z for the layers that follow."""
        return self.update_statistics(x, context)

    def update_statistics(self, x: Array, context: Array | None = None) -> Array:
        """Set stored statistics (not parameters) from x; return z for the layers that follow."""
        return self.forward(x, context)[0]

    def singular(self) -> str | None:
        """Why the map cannot be inverted with its present parameters; None if it can."""
        return None


def accumulate(total: Array | None, part: Array | None) -> Array | None:
    """The sum of two gradients of the context, either of which may be absent."""
    if part is None:
        return total
    return part if total is None else total + part
