"""One row of a layer's input: NumPy is fast enough."""

from npflow.kernels.reference.drift import drift as drift
