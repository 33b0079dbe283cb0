"""Diagonal scaling z = x e^s with one log-scale a feature.

Shapes: x, z (B, D); log_scale (D,); log_det (B,). Source: NICE, arXiv:1410.8516, section 3.3.
"""

import numpy as np


def diagonal_forward(x, log_scale):
    """z = x exp(log_scale); log_det = sum_j log_scale_j for every row."""
    return x * np.exp(log_scale), np.full(len(x), log_scale.sum(), x.dtype)


def diagonal_inverse(z, log_scale):
    """x = z exp(-log_scale); log_det = -sum_j log_scale_j for every row."""
    return z * np.exp(-log_scale), np.full(len(z), -log_scale.sum(), z.dtype)


def diagonal_backward(dz, dlog_det, x, log_scale, dlog_scale):
    """Gradient of diagonal_forward. Returns dx; dlog_scale (D,) is added to."""
    dx = dz * np.exp(log_scale)
    dlog_scale += (dx * x).sum(axis=0) + dlog_det.sum()
    return dx


def diagonal_inverse_backward(dx, dlog_det, x, log_scale, dlog_scale):
    """Gradient of diagonal_inverse, whose log_det is -sum log_scale. Returns dz."""
    dlog_scale -= (dx * x).sum(axis=0) + dlog_det.sum()
    return dx * np.exp(-log_scale)
