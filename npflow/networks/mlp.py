"""Multilayer perceptron, the conditioner of dense couplings.

Map       h_0 = [x | context];  h_l = act(h_{l-1} W_l + b_l);  the last layer is linear
Gradient  for l from the last to the first:  da = dh_l act'(h_l)
          dW_l += h_{l-1}^T da;  db_l += sum_B da;  dh_{l-1} = da W_l^T
Source    backpropagation by hand; act' is computed from the output, so only outputs are kept

Cost: 2 n_in n_out flops a layer and sample forward, 4 back. Cache: every layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from npflow.backend import Array
from npflow.errors import ConfigurationError, ShapeError
from npflow.params import Component, Parameter, constant, uniform_fan_in

ACTIVATIONS = ("relu", "tanh", "leaky_relu", "elu")


class MLPCache(NamedTuple):
    activations: tuple[Array, ...]  # the input (B, inputs + context) and each layer's output


@dataclass(eq=False)
class MLP(Component):
    """inputs (+ context) -> hidden[0] -> ... -> outputs.

    activation : "relu", "tanh", "leaky_relu" (slope 0.01) or "elu" (alpha 1)
    context    : the number of context features, appended to the input
    zero_last  : start the last layer at zero, so that a flow starts as the identity

    Weights start as U(-1/sqrt(n_in), 1/sqrt(n_in)), and so do biases.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "relu"
    context: int = 0
    zero_last: bool = True

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        widths = (self.inputs + self.context, *self.hidden, self.outputs)
        if min(widths) < 1:
            raise ConfigurationError(f"layer widths are {widths}; expected 1 or more each")
        self._activations = (self.activation,) * len(self.hidden) + ("identity",)
        self.weights, self.biases = [], []
        for layer, (n_in, n_out) in enumerate(pairwise(widths)):
            last = layer == len(self.hidden)
            initial = constant(0.0) if last and self.zero_last else uniform_fan_in(n_in)
            self.weights.append(Parameter((n_in, n_out), initial))
            self.biases.append(Parameter((n_out,), initial))

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, MLPCache]:
        """The outputs (B, outputs) and the cache."""
        if self.context:
            if context is None:
                raise ShapeError(f"this flow needs a context of {self.context} features a row")
            x = self.backend.xp.concatenate([x, context], axis=1)
        h = [x]
        for weight, bias, activation in zip(
            self.weights, self.biases, self._activations, strict=True
        ):
            h.append(
                self.backend.kernels.linear_forward(h[-1], weight.value, bias.value, activation)
            )
        return h[-1], MLPCache(tuple(h[:-1]))

    def backward(self, cache: MLPCache, dy: Array) -> tuple[Array, Array | None]:
        """dx and dcontext; dy may be overwritten."""
        linear_backward = self.backend.kernels.linear_backward
        h = (*cache.activations, dy)  # the last layer is linear: its output is not needed
        for layer in reversed(range(len(self.weights))):
            weight, bias = self.weights[layer], self.biases[layer]
            dy = linear_backward(
                dy, h[layer], h[layer + 1], weight.value, self._activations[layer],
                weight.grad, bias.grad,
            )  # fmt: skip
        if not self.context:
            return dy, None
        contiguous = self.backend.xp.ascontiguousarray
        return contiguous(dy[:, : self.inputs]), contiguous(dy[:, self.inputs :])
