"""Noise for integers, with a density that is learned: variational dequantization.

Bound     log P(v) >= E_{u ~ q(u|v)}[log p(v + u) - log q(u|v)],  u in [0, 1)^D
Sample    eps ~ N(0, I)                                                F1
          c = 2 v / (levels - 1) - 1                                   F2
          y = bijection^-1(eps; c),  u = sigmoid(y),  x = v + u        F3, F4, F5
          log q(u|v) = log N(eps) - log_det(F3) - log_det(F4)          F6
Gradient  dlog_det = -dlog_q,  du = dx                                 B6, B5
          dy = du u (1 - u) + dlog_det (1 - 2u)                        B4
          the bijection's inverse_backward takes dy and dlog_det       B3
          v and eps are given: no gradient goes further
Source    Flow++, arXiv:1902.00275, section 3.1; the bound: arXiv:1511.01844, eq. 3

Uniform noise (`npflow.dequantize`) is q = 1: the bound's gap is then the KL divergence from the
uniform density to the flow's own one within the cell of v, which a q that is learned makes smaller.
docs/dequantization.md has the derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npflow import random
from npflow.backend import Array
from npflow.bijections import Bijection, Logit
from npflow.bijections.chain import RECOMPUTE, STORE, Chain, ChainCache, Memory
from npflow.bijections.preprocess import LogitCache
from npflow.errors import ConfigurationError
from npflow.params import Component, Parameter, walk


class DequantizationCache(NamedTuple):
    sigmoid: LogitCache
    bijection: ChainCache


class Dequantized(NamedTuple):
    """One draw of noise."""

    x: Array  # (B, *shape), v + u
    log_q: Array  # (B,), log q(u|v)
    cache: DequantizationCache


@dataclass(eq=False)
class VariationalDequantization(Component):
    """q(u|v): normal noise through the inverse of a bijection that is given v, and a sigmoid.

    shape          : that of one v
    bijection      : y (B, *shape) -> eps (B, D), given the scaled v as its context. y is a real
                     number for each of the D = prod(shape) values; the sigmoid is not part of it.
                     Anything but a Chain is put into one. An empty Chain is noise that is the same
                     for all v
    levels         : v goes from 0 to levels - 1; v is scaled from that to [-1, 1]
    context_layers : layers without parameters that bring the scaled v into the shape that the
                     conditioners of the bijection expect (Squeeze)

    Raises ConfigurationError for fewer than 2 levels or context layers with parameters.
    """

    shape: tuple[int, ...]
    bijection: Chain
    levels: int = 256
    context_layers: tuple[Bijection, ...] = ()

    def __post_init__(self):
        if self.levels < 2:
            raise ConfigurationError(f"levels is {self.levels}; expected 2 or more")
        for layer in self.context_layers:
            if any(isinstance(member, Parameter) for _, member in walk(layer)):
                raise ConfigurationError(
                    f"context layer {type(layer).__name__} has parameters, which would not be "
                    "trained; use layers that only change the shape"
                )
        if not isinstance(self.bijection, Chain):
            self.bijection = Chain((self.bijection,))
        # Not a layer of the chain: u near 1 has lost the digits that y would be found from again.
        # A lam that vanishes beside any p keeps u in its cell.
        self._sigmoid = Logit(lam=1e-30, levels=1.0)

    def sample(
        self,
        values: Array,
        seed: int,
        step: int,
        stream: random.Stream = random.Stream.DEQUANTIZE,
        memory: Memory = STORE,
    ) -> Dequantized:
        """x = v + u with u ~ q(u|v), fresh for every (seed, stream, step), and log q(u|v).

        values: (B, *shape), integers on the backend. In floating point a sum v + u may round to
        v + 1.
        """
        eps, context = self._inputs(values, seed, step, stream)  # F1, F2
        y, log_det_y, chain_cache = self.bijection.inverse(eps, context, memory)  # F3
        u, log_det_u, sigmoid_cache = self._sigmoid.inverse(y.reshape(eps.shape))  # F4
        x = self._add(values, u)  # F5
        log_q = self.backend.kernels.normal_log_prob(eps) - log_det_y - log_det_u  # F6
        return Dequantized(x, log_q, DequantizationCache(sigmoid_cache, chain_cache))

    def backward(self, cache: DequantizationCache, dx: Array, dlog_q: Array) -> None:
        """Add the gradients of the parameters; dx is (B, *shape) and may be overwritten."""
        dlog_det = -dlog_q  # B6
        du = dx.reshape(len(dx), -1)  # B5
        dy, _ = self._sigmoid.inverse_backward(cache.sigmoid, du, dlog_det)  # B4
        self.bijection.inverse_backward(cache.bijection, dy.reshape(dx.shape), dlog_det)  # B3

    def initialize(self, values: Array, seed: int) -> Array:
        """Set data-dependent parameters as if u were uniform. Returns v + u for the flow."""
        shape, stream = (len(values), math.prod(self.shape)), random.Stream.DEQUANTIZE_EVALUATION
        u = random.uniform(self.backend, shape, seed, stream, 0)
        u = self.backend.xp.maximum(u, float(np.finfo(u.dtype).eps) / 2)  # 0 has no finite logit
        y = self._sigmoid.forward(u)[0].reshape(values.shape)
        self.bijection.initialize(y, self._context(values))
        return self._add(values, u)

    def non_finite_layer(
        self, values: Array, seed: int, step: int, stream: random.Stream
    ) -> int | None:
        """The first layer of the bijection whose inverse is not finite in `sample`."""
        inputs = self._inputs(values, seed, step, stream)
        y, _, cache = self.bijection.inverse(*inputs, RECOMPUTE)
        layers, outputs = list(cache.kept), [*list(cache.kept.values())[1:], y]  # as applied
        for k, output in zip(layers, outputs, strict=False):
            if not self.backend.xp.isfinite(output).all():
                return k
        return None

    def _inputs(
        self, values: Array, seed: int, step: int, stream: random.Stream
    ) -> tuple[Array, Array]:
        """eps (B, D) and the context."""
        shape = (len(values), math.prod(self.shape))
        return random.normal(self.backend, shape, seed, stream, step), self._context(values)

    def _context(self, values: Array) -> Array:
        context = self.backend.array(values) * (2 / (self.levels - 1)) - 1
        for layer in self.context_layers:
            context = layer.forward(context)[0]
        return context

    def _add(self, values: Array, u: Array) -> Array:
        return self.backend.xp.add(values, u.reshape(values.shape), dtype=self.backend.dtype)
