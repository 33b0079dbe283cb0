"""Batch normalisation as a bijection.

Map       x_hat = (x - mean) / sqrt(var + eps)                            F1
          z = gamma x_hat + beta                                          F2
Inverse   x = (z - beta) sqrt(var + eps) / gamma + mean
Log-det   sum_j log gamma_j - 1/2 log(var_j + eps), the same for every row   F3
Gradient  G = sum_B dlog_det
          dbeta = sum_B dz;  dlog_gamma = sum_B dz gamma x_hat + G        B2, B3
          dx_hat = gamma dz                                               B2
          fixed moments:  dx = dx_hat / sigma                             B1
          own moments:    dx = (dx_hat - mean_B dx_hat
                                - x_hat (sum_B dx_hat x_hat + G) / B) / sigma
Source    arXiv:1502.03167; as a flow layer MAF, arXiv:1705.07057, section 3.1 and eq. 20

Training normalises with the batch's own moments, and the gradient goes through them, through the
log-det too. Everything else (density, sampling) uses stored moments, taken over a data set at
once by `flow.update_statistics(x)`, as the MAF paper does before it validates: a density must not
depend on which points are asked for together. The output of a batch does not hold its moments, so
this layer cannot be walked back by inversion while training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from npflow.backend import Array
from npflow.bijections.bijection import Bijection
from npflow.errors import ShapeError
from npflow.params import Parameter, State, constant


class BatchNormCache(NamedTuple):
    x: Array  # (B, D)
    mean: Array  # (D,)
    var: Array  # (D,)
    own: bool  # whether mean and var are x's own moments


@dataclass(eq=False)
class BatchNorm(Bijection):
    """z = gamma (x - mean) / sqrt(var + epsilon) + beta, feature by feature."""

    features: int
    epsilon: float = 1e-5
    invert_refusal = "training normalises with the batch's moments, which its output does not hold"

    def __post_init__(self):
        shape = (self.features,)
        self.log_gamma = Parameter(shape, constant(0.0))
        self.beta = Parameter(shape, constant(0.0))
        self.mean = State(shape, constant(0.0))
        self.var = State(shape, constant(1.0))

    def forward(self, x, context=None):
        return self._normalize(BatchNormCache(x, self.mean.value, self.var.value, own=False))

    def training_forward(self, x, context=None):
        if len(x) < 2:
            raise ShapeError("a batch of 1 has no variance to normalise with; use 2 rows or more")
        mean, var = self.backend.kernels.moments(x)
        return self._normalize(BatchNormCache(x, mean, var, own=True))

    def _normalize(self, cache):
        z, log_det = self.backend.kernels.batch_norm_forward(
            cache.x, cache.mean, cache.var, self.log_gamma.value, self.beta.value, self.epsilon
        )
        return z, log_det, cache

    def inverse(self, z, context=None):
        mean, var = self.mean.value, self.var.value
        x, log_det = self.backend.kernels.batch_norm_inverse(
            z, mean, var, self.log_gamma.value, self.beta.value, self.epsilon
        )
        return x, log_det, BatchNormCache(x, mean, var, own=False)

    def backward(self, cache, dz, dlog_det):
        dx = self.backend.kernels.batch_norm_backward(
            dz, dlog_det, cache.x, cache.mean, cache.var, self.log_gamma.value, self.epsilon,
            cache.own, self.log_gamma.grad, self.beta.grad,
        )  # fmt: skip
        return dx, None

    def inverse_backward(self, cache, dx, dlog_det):
        dz = self.backend.kernels.batch_norm_inverse_backward(
            dx, dlog_det, cache.x, cache.mean, cache.var, self.log_gamma.value, self.epsilon,
            self.log_gamma.grad, self.beta.grad,
        )  # fmt: skip
        return dz, None

    def update_statistics(self, x, context=None):
        mean, var = self.backend.kernels.moments(x)
        self.mean.value[...] = mean
        self.var.value[...] = var
        return self.forward(x, context)[0]
