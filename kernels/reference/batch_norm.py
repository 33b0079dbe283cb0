"""Batch normalisation as a bijection: z = gamma (x - mean) / sqrt(var + eps) + beta.

Shapes: x, z (B, D); mean, var, log_gamma, beta (D,); log_det (B,).
Source: arXiv:1502.03167; as a flow layer arXiv:1605.08803 section 3.7 and arXiv:1705.07057 eq. 20.
"""

import numpy as np


def moments(x):
    """Mean and (biased) variance of each column: (D,), (D,)."""
    return x.mean(axis=0), x.var(axis=0)


def batch_norm_forward(x, mean, var, log_gamma, beta, epsilon):
    """z = gamma (x - mean) / sigma + beta; log_det = sum_j log gamma_j - 1/2 log(var_j + eps)."""
    log_scale = log_gamma - 0.5 * np.log(var + epsilon)
    z = (x - mean) * np.exp(log_scale) + beta
    return z, np.full(len(x), log_scale.sum(), x.dtype)


def batch_norm_inverse(z, mean, var, log_gamma, beta, epsilon):
    """x = (z - beta) sigma / gamma + mean; log_det = -(that of batch_norm_forward)."""
    log_scale = log_gamma - 0.5 * np.log(var + epsilon)
    x = (z - beta) * np.exp(-log_scale) + mean
    return x, np.full(len(z), -log_scale.sum(), z.dtype)


def batch_norm_backward(dz, dlog_det, x, mean, var, log_gamma, epsilon, own, dlog_gamma, dbeta):
    """Gradient of batch_norm_forward. Returns dx; dlog_gamma and dbeta (D,) are added to.

    own: whether mean and var are x's own moments, so that the gradient flows through them too:
        dmean = -sum dx_hat / sigma;  dvar = -1/2 (sum dx_hat x_hat + sum dlog_det) / (var + eps)
    """
    sigma = np.sqrt(var + epsilon)
    x_hat = (x - mean) / sigma
    dx_hat = dz * np.exp(log_gamma)
    dlog_det_sum = dlog_det.sum()
    dx_hat_x_hat = (dx_hat * x_hat).sum(axis=0)
    dlog_gamma += dx_hat_x_hat + dlog_det_sum
    dbeta += dz.sum(axis=0)
    if own:
        dx_hat = dx_hat - dx_hat.mean(axis=0) - x_hat * ((dx_hat_x_hat + dlog_det_sum) / len(x))
    return dx_hat / sigma


def batch_norm_inverse_backward(dx, dlog_det, x, mean, var, log_gamma, epsilon, dlog_gamma, dbeta):
    """Gradient of batch_norm_inverse (fixed moments). Returns dz; adds to the others."""
    dz = dx * np.exp(0.5 * np.log(var + epsilon) - log_gamma)
    dlog_gamma -= (dx * (x - mean)).sum(axis=0) + dlog_det.sum()
    dbeta -= dz.sum(axis=0)
    return dz
