"""The convolutional network of Glow, a conditioner of couplings of images.

Map       h_0 = [x | context];  h_l = act(h_{l-1} * W_l + b_l), in Glow 3 x 3 and 1 x 1;
          y = (h_2 * W_3 + b_3) e^3s, in Glow 3 x 3
Gradient  from the last layer to the first, that of each in conv.py;  dh_0 = [dx | dcontext]
Source    Glow, arXiv:1807.03039, section 3.3 and its code, without the actnorms in it

Cost: 2 (k k n_0 + n) n + 2 k k n n_out flops a pixel forward, twice that back, n = width. Cache:
h_0, h_1 and h_2. With splines, which take many parameters a channel, a 1 x 1 end costs a ninth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.errors import ConfigurationError
from npflow.networks.conv import Conv, ImageNetwork, ZeroConv, append_context, split_context
from npflow.networks.mlp import ACTIVATIONS


class ConvNetCache(NamedTuple):
    activations: tuple[Array, ...]  # h_0 (B, H, W, inputs + context), h_1, ... (B, H, W, width)
    context_axes: int  # 2 for a context (B, n), 4 for an image, 0 for none


@dataclass(eq=False)
class ConvNet(ImageNetwork):
    """x (B, H, W, inputs) -> y (B, H, W, outputs).

    width      : channels of the hidden layers
    activation : "relu", "tanh", "leaky_relu" (slope 0.01) or "elu" (alpha 1)
    context    : the number of context features; the context is (B, n) or an image (B, H, W, n)
    zero_last  : end in a ZeroConv, so that a flow starts as the identity; else in a Conv
    kernels    : the width of the patches of each layer, odd; one for every layer, 2 or more
    """

    inputs: int
    width: int
    outputs: int
    activation: str = "relu"
    context: int = 0
    zero_last: bool = True
    kernels: tuple[int, ...] = (3, 1, 3)

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        if len(self.kernels) < 2:
            raise ConfigurationError(f"kernels is {self.kernels}; expected 2 layers or more")
        first, *others, last = self.kernels
        self.layers = (
            Conv(self.inputs + self.context, self.width, first, self.activation),
            *(Conv(self.width, self.width, kernel, self.activation) for kernel in others),
            (ZeroConv if self.zero_last else Conv)(self.width, self.outputs, last),
        )

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, ConvNetCache]:
        """y and the cache."""
        inputs, context_axes = append_context(self.backend.xp, x, context, self.context)
        h = [inputs]
        for layer in self.layers:
            h.append(layer.forward(h[-1]))
        return h[-1], ConvNetCache(tuple(h[:-1]), context_axes)

    def backward(self, cache: ConvNetCache, dy: Array) -> tuple[Array, Array | None]:
        """dx and dcontext; dy may be overwritten."""
        h = (*cache.activations, dy)  # the last layer is linear: its output is not needed
        for i in reversed(range(len(self.layers))):
            dy = self.layers[i].backward(dy, h[i], h[i + 1])
        return split_context(self.backend.xp, dy, self.context, cache.context_axes)
