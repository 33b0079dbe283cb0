"""Activation normalisation z = x e^s + b, with one log-scale s and one shift b a channel.

Shapes: x, z (B, ..., C), channels last; log_scale, shift (C,); log_det (B,). The places between
batch and channels (the pixels of an image) share scale and shift, and each counts in the log_det.
Source: Glow, arXiv:1807.03039, section 3.1 and table 1.
"""

import numpy as np


def actnorm_forward(x, log_scale, shift):
    """z = x exp(log_scale) + shift; log_det = pixels * sum_c log_scale_c for every row."""
    log_det = _pixels(x) * log_scale.sum()
    return x * np.exp(log_scale) + shift, np.full(len(x), log_det, x.dtype)


def actnorm_inverse(z, log_scale, shift):
    """x = (z - shift) exp(-log_scale); log_det is minus that of actnorm_forward."""
    log_det = -_pixels(z) * log_scale.sum()
    return (z - shift) * np.exp(-log_scale), np.full(len(z), log_det, z.dtype)


def actnorm_backward(dz, dlog_det, x, log_scale, dlog_scale, dshift):
    """Gradient of actnorm_forward. Returns dx; dlog_scale and dshift (C,) are added to."""
    dx = dz * np.exp(log_scale)
    dlog_scale += _column_sums(dx * x) + _pixels(x) * dlog_det.sum()
    dshift += _column_sums(dz)
    return dx


def actnorm_inverse_backward(dx, dlog_det, x, log_scale, dlog_scale, dshift):
    """Gradient of actnorm_inverse. Returns dz; dlog_scale and dshift (C,) are added to."""
    dz = dx * np.exp(-log_scale)
    dlog_scale -= _column_sums(dx * x) + _pixels(x) * dlog_det.sum()
    dshift -= _column_sums(dz)
    return dz


def _pixels(x):
    return x[0, ..., 0].size


def _column_sums(x):
    return x.reshape(-1, x.shape[-1]).sum(axis=0)
