"""Convolutions of channels-last images, the layers of the image networks.

Map       y = act(x * W + b), * a cross-correlation with zero padding: y has the pixels of x.
          Conv uses the weight as it is stored. The other two compute W and b from what is stored:
          WeightNormConv  W = gain v / |v|               |v| of each output channel
          ZeroConv        W = e^3s w, b = e^3s shift     s, w and shift are zero at first
Gradient  dW, db, dx by kernels/reference/conv.py; then, Σ over all but the output channels,
          WeightNormConv  dgain += Σ dW v / |v|;  dv += gain/|v| (dW - v/|v| Σ dW v/|v|)
          ZeroConv        dw += e^3s dW;  dshift += e^3s db;  ds += 3 (Σ dW W + db b)
Source    weight normalisation arXiv:1602.07868, eq. 2 and 3; ZeroConv: Glow, arXiv:1807.03039,
          section 3.3 and its code, where it scales the output: the same, and here no pass over it

Cost: 2 k k n_in n_out flops a layer and pixel forward, 4 back. Cache: x and y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from npflow.backend import Array
from npflow.errors import ConfigurationError, ShapeError
from npflow.params import Component, Parameter, constant, uniform_fan_in

ACTIVATIONS = ("identity", "relu", "tanh", "leaky_relu", "elu")
LOG_GAIN_FACTOR = 3.0  # of Glow: the gain learns three times as fast


def _shape(inputs: int, outputs: int, kernel: int) -> tuple[int, int, int, int]:
    if min(inputs, outputs) < 1 or kernel < 1 or kernel % 2 == 0:
        raise ConfigurationError(
            f"a convolution has {inputs} input and {outputs} output channels and a kernel of "
            f"{kernel}; expected 1 or more channels and an odd kernel"
        )
    return (kernel, kernel, inputs, outputs)


@dataclass(eq=False)
class Conv(Component):
    """x (B, H, W, inputs) -> y (B, H, W, outputs), by patches of kernel x kernel pixels.

    activation : "identity", "relu", "leaky_relu" (slope 0.01), "tanh" or "elu" (alpha 1)
    zero       : start at zero; else weight and bias start as U(-1/sqrt(n), 1/sqrt(n)), where
                 n = kernel^2 inputs
    """

    inputs: int
    outputs: int
    kernel: int = 3
    activation: str = "identity"
    zero: bool = False

    def __post_init__(self):
        shape = _shape(self.inputs, self.outputs, self.kernel)
        if self.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        initial = constant(0.0) if self.zero else uniform_fan_in(self.kernel**2 * self.inputs)
        self.weight = Parameter(shape, initial)
        self.bias = Parameter((self.outputs,), initial)

    def forward(self, x: Array) -> Array:
        """y."""
        return self.backend.kernels.conv_forward(
            x, self.weight.value, self.bias.value, self.activation
        )

    def backward(self, dy: Array, x: Array, y: Array) -> Array:
        """dx; dy may be overwritten."""
        return self.backend.kernels.conv_backward(
            dy, x, y, self.weight.value, self.activation, self.weight.grad, self.bias.grad
        )


@dataclass(eq=False)
class WeightNormConv(Component):
    """A convolution whose weight has its length and its direction as separate parameters.

    zero : start with gain zero, so that y is zero; else gain is 1: where the numbers of a patch
           have mean square 1 and do not correlate, so have those of y. v starts as Conv's weight
    """

    inputs: int
    outputs: int
    kernel: int = 3
    activation: str = "identity"
    zero: bool = False

    def __post_init__(self):
        shape = _shape(self.inputs, self.outputs, self.kernel)
        self.v = Parameter(shape, uniform_fan_in(self.kernel**2 * self.inputs))
        self.gain = Parameter((self.outputs,), constant(0.0 if self.zero else 1.0))
        self.bias = Parameter((self.outputs,), constant(0.0))

    def _weight(self) -> Array:
        return self.backend.kernels.normalized_weight(self.v.value, self.gain.value)

    def forward(self, x: Array) -> Array:
        """y."""
        return self.backend.kernels.conv_forward(
            x, self._weight(), self.bias.value, self.activation
        )

    def backward(self, dy: Array, x: Array, y: Array) -> Array:
        """dx; dy may be overwritten."""
        kernels = self.backend.kernels
        dweight = self.backend.xp.zeros_like(self.v.value)
        dx = kernels.conv_backward(
            dy, x, y, self._weight(), self.activation, dweight, self.bias.grad
        )
        kernels.normalized_weight_backward(
            dweight, self.v.value, self.gain.value, self.v.grad, self.gain.grad
        )
        return dx


@dataclass(eq=False)
class ZeroConv(Component):
    """A convolution that starts at zero, times a learned gain e^3s of each output channel."""

    inputs: int
    outputs: int
    kernel: int = 3

    def __post_init__(self):
        shape = _shape(self.inputs, self.outputs, self.kernel)
        self.weight = Parameter(shape, constant(0.0))
        self.bias = Parameter((self.outputs,), constant(0.0))
        self.log_gain = Parameter((self.outputs,), constant(0.0))

    def _stored(self) -> tuple[Array, Array, Array, float]:
        return self.weight.value, self.bias.value, self.log_gain.value, LOG_GAIN_FACTOR

    def forward(self, x: Array) -> Array:
        """y."""
        kernels = self.backend.kernels
        weight, bias = kernels.scaled_weight(*self._stored())
        return kernels.conv_forward(x, weight, bias, "identity")

    def backward(self, dy: Array, x: Array, y: Array) -> Array:
        """dx; dy may be overwritten."""
        kernels, zeros_like = self.backend.kernels, self.backend.xp.zeros_like
        weight, bias = kernels.scaled_weight(*self._stored())
        dweight, dbias = zeros_like(weight), zeros_like(bias)
        dx = kernels.conv_backward(dy, x, y, weight, "identity", dweight, dbias)
        kernels.scaled_weight_backward(
            dweight, dbias, *self._stored(), self.weight.grad, self.bias.grad, self.log_gain.grad
        )
        return dx


class ImageNetwork(Component):
    """A network of images, the conditioner of an ImageCoupling: (B, H, W, inputs) -> outputs."""

    inputs: int
    outputs: int

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Any]:
        """y (B, H, W, outputs) and the cache."""
        raise NotImplementedError

    def backward(self, cache: Any, dy: Array) -> tuple[Array, Array | None]:
        """dx and dcontext, which has the shape of the context; dy may be overwritten."""
        raise NotImplementedError


def append_context(xp: Any, x: Array, context: Array | None, features: int) -> tuple[Array, int]:
    """x (B, H, W, inputs) with `features` more channels, and how many axes the context has (or 0).

    context : (B, features), the same at every pixel, or (B, H, W, features)

    Raises ShapeError if there are features and the context is missing or does not fit.
    """
    if not features:
        return x, 0
    pixels = x.shape[:3]
    shapes = (pixels[0], features), (*pixels, features)
    if context is None or context.shape not in shapes:
        given = "none" if context is None else f"shape {context.shape}"
        raise ShapeError(
            f"the network of an image {x.shape} takes a context of shape {shapes[0]} or "
            f"{shapes[1]}; given: {given}"
        )
    axes = context.ndim
    if axes == 2:
        context = xp.broadcast_to(context[:, None, None], shapes[1])
    return xp.concatenate([x, context], axis=3), axes


def split_context(
    xp: Any, dinputs: Array, features: int, context_axes: int
) -> tuple[Array, Array | None]:
    """The adjoint of append_context: dx, and dcontext in the shape of the context."""
    if not features:
        return dinputs, None
    dx, dcontext = dinputs[..., :-features], dinputs[..., -features:]
    dcontext = dcontext.sum(axis=(1, 2)) if context_axes == 2 else xp.ascontiguousarray(dcontext)
    return xp.ascontiguousarray(dx), dcontext
