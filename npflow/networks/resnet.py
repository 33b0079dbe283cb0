"""Residual networks of images: that of RealNVP and the gated one of Flow++.

Map       ResNet       h = [x | context] * W_in + b_in;  s = h * S_0;  a block is
                       h += relu(relu(h) * W_1 + b_1) * W_2 + b_2;  s += h * S_l, 1 x 1;
                       y = relu(s) * W_out + b_out, 1 x 1. All weights are normalised
          GatedResNet  h = [x | context] * W_in + b_in;  a block is, c(h) = [elu(h) | elu(-h)],
                       [v | g] = c(c(h) * W_1 + b_1) * W_2 + b_2, W_2 1 x 1;
                       h = norm(h + v sigmoid(g)), over the channels of each pixel;
                       y = c(h) * W_out + b_out
Gradient  from the last layer to the first; where h branches, the gradients of the branches add up.
          conv.py and kernels/reference/gated.py derive those of the parts
Source    RealNVP, arXiv:1605.08803, section 4.1; weight normalisation arXiv:1602.07868;
          Flow++, arXiv:1902.00275, section 3.2

RealNVP's batch norm is left out: it makes the rows of a batch depend on each other.

Cost: 38 n^2 (ResNet, with its skip) and 44 n^2 (GatedResNet) flops a block and pixel forward, twice
that back, n = width. Cache: 2 n numbers a block and pixel (ResNet), 4 n (GatedResNet).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.errors import ConfigurationError
from npflow.networks.conv import Conv, ImageNetwork, WeightNormConv, append_context, split_context
from npflow.params import Parameter, constant

EPSILON = 1e-5  # of the norm over channels


def _require_blocks(blocks: int) -> None:
    if blocks < 1:
        raise ConfigurationError(f"blocks is {blocks}; expected 1 or more")


class ResNetCache(NamedTuple):
    inputs: Array  # (B, H, W, inputs + context)
    h: tuple[Array, ...]  # before the first block and after each, (B, H, W, width)
    inner: tuple[Array, ...]  # of each block: the output of its first convolution
    last: Array  # relu(s)
    context_axes: int  # 2 for a context (B, n), 4 for an image, 0 for none


@dataclass(eq=False)
class ResNet(ImageNetwork):
    """x (B, H, W, inputs) -> y (B, H, W, outputs), RealNVP's.

    width     : channels of the hidden layers
    blocks    : how many residual blocks
    context   : the number of context features; the context is (B, n) or an image (B, H, W, n)
    zero_last : start with y = 0, so that a flow starts as the identity
    """

    inputs: int
    width: int
    outputs: int
    blocks: int
    context: int = 0
    zero_last: bool = True

    def __post_init__(self):
        _require_blocks(self.blocks)
        n, blocks = self.width, range(self.blocks)
        self.first = WeightNormConv(self.inputs + self.context, n)
        self.inner = [WeightNormConv(n, n, activation="relu") for _ in blocks]
        self.outer = [WeightNormConv(n, n) for _ in blocks]
        self.skips = [WeightNormConv(n, n, kernel=1) for _ in range(self.blocks + 1)]
        self.last = WeightNormConv(n, self.outputs, kernel=1, zero=self.zero_last)

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, ResNetCache]:
        """y and the cache."""
        xp = self.backend.xp
        inputs, context_axes = append_context(xp, x, context, self.context)
        h, inner = [self.first.forward(inputs)], []
        skipped = self.skips[0].forward(h[0])
        for i in range(self.blocks):
            inner.append(self.inner[i].forward(xp.maximum(h[i], 0)))
            h.append(h[i] + self.outer[i].forward(inner[i]))
            skipped += self.skips[i + 1].forward(h[i + 1])
        last = xp.maximum(skipped, 0)
        cache = ResNetCache(inputs, tuple(h), tuple(inner), last, context_axes)
        return self.last.forward(last), cache

    def backward(self, cache: ResNetCache, dy: Array) -> tuple[Array, Array | None]:
        """dx and dcontext; dy may be overwritten."""
        xp = self.backend.xp
        inputs, h, inner, last, context_axes = cache
        dskipped = self.last.backward(dy, last, dy) * (last > 0)
        dh = self.skips[-1].backward(dskipped.copy(), h[-1], dskipped)
        for i in reversed(range(self.blocks)):
            relu = xp.maximum(h[i], 0)
            dinner = self.outer[i].backward(dh.copy(), inner[i], dh)
            dh += self.inner[i].backward(dinner, relu, inner[i]) * (relu > 0)
            dh += self.skips[i].backward(dskipped.copy(), h[i], dskipped)
        dinputs = self.first.backward(dh, inputs, dh)
        return split_context(xp, dinputs, self.context, context_axes)


class GatedResNetCache(NamedTuple):
    inputs: Array  # (B, H, W, inputs + context)
    h: tuple[Array, ...]  # before the first block and after each, (B, H, W, width)
    inner: tuple[Array, ...]  # of each block: the output of its first convolution
    params: tuple[Array, ...]  # of each block: [v | g], (B, H, W, 2 width)
    context_axes: int  # 2 for a context (B, n), 4 for an image, 0 for none


@dataclass(eq=False)
class GatedResNet(ImageNetwork):
    """x (B, H, W, inputs) -> y (B, H, W, outputs), Flow++'s without attention and dropout.

    width     : channels of the hidden layers
    blocks    : how many gated residual blocks
    context   : the number of context features; the context is (B, n) or an image (B, H, W, n)
    zero_last : start the last layer at zero, so that a flow starts as the identity
    kernels   : the widths of the patches of the first and the last layer, odd
    """

    inputs: int
    width: int
    outputs: int
    blocks: int
    context: int = 0
    zero_last: bool = True
    kernels: tuple[int, int] = (3, 3)

    def __post_init__(self):
        _require_blocks(self.blocks)
        n, blocks = self.width, range(self.blocks)
        self.first = Conv(self.inputs + self.context, n, self.kernels[0])
        self.inner = [Conv(2 * n, n) for _ in blocks]
        self.outer = [Conv(2 * n, 2 * n, kernel=1) for _ in blocks]
        self.gains = [Parameter((n,), constant(1.0)) for _ in blocks]
        self.shifts = [Parameter((n,), constant(0.0)) for _ in blocks]
        self.last = Conv(2 * n, self.outputs, self.kernels[1], zero=self.zero_last)

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, GatedResNetCache]:
        """y and the cache."""
        kernels = self.backend.kernels
        inputs, context_axes = append_context(self.backend.xp, x, context, self.context)
        h, inner, params = [self.first.forward(inputs)], [], []
        for i in range(self.blocks):
            inner.append(self.inner[i].forward(kernels.concat_elu_forward(h[i])))
            params.append(self.outer[i].forward(kernels.concat_elu_forward(inner[i])))
            gain, shift = self.gains[i].value, self.shifts[i].value
            h.append(kernels.gated_norm_forward(h[i], params[i], gain, shift, EPSILON))
        cache = GatedResNetCache(inputs, tuple(h), tuple(inner), tuple(params), context_axes)
        return self.last.forward(kernels.concat_elu_forward(h[-1])), cache

    def backward(self, cache: GatedResNetCache, dy: Array) -> tuple[Array, Array | None]:
        """dx and dcontext; dy may be overwritten."""
        kernels = self.backend.kernels
        inputs, h, inner, params, context_axes = cache

        def through(conv: Conv, dy: Array, x: Array) -> Array:
            """The gradient of y = conv(concat_elu(x)) with respect to x."""
            elu = kernels.concat_elu_forward(x)  # again: it is twice as large as x
            return kernels.concat_elu_backward(conv.backward(dy, elu, dy), elu)

        dh = through(self.last, dy, h[-1])
        for i in reversed(range(self.blocks)):
            gain, shift = self.gains[i], self.shifts[i]
            dh, dparams = kernels.gated_norm_backward(
                dh, h[i], params[i], gain.value, EPSILON, gain.grad, shift.grad
            )
            dinner = through(self.outer[i], dparams, inner[i])
            dh += through(self.inner[i], dinner, h[i])
        dinputs = self.first.backward(dh, inputs, dh)
        return split_context(self.backend.xp, dinputs, self.context, context_axes)
