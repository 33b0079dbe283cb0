"""The linear layer on the CPU."""

from npflow.kernels.reference.linear import linear_backward, linear_forward

__all__ = ["linear_backward", "linear_forward"]
