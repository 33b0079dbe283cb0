"""Logit of bounded data: y = log p - log(1 - p) with p = lam + (1 - 2 lam) x / levels.

Shapes: x, y (B, D); log_det (B,). x lies in [0, levels] (levels = 256 for 8-bit images).
Source: RealNVP, arXiv:1605.08803, section 4.1; MAF, arXiv:1705.07057, section 4.3.
"""

import math

import numpy as np


def logit_forward(x, lam, levels):
    """y = logit(p); log_det = sum_j log(slope) - log p_j - log(1 - p_j)."""
    slope = (1 - 2 * lam) / levels
    log_p = np.log(lam + slope * x)
    log_q = np.log(lam + slope * (levels - x))  # q = 1 - p, without cancellation near x = levels
    return log_p - log_q, (math.log(slope) - log_p - log_q).sum(axis=1)


def logit_inverse(y, lam, levels):
    """x = (sigmoid(y) - lam) / slope; log_det = sum_j log p_j + log(1 - p_j) - log(slope)."""
    slope = (1 - 2 * lam) / levels
    p = 1 / (1 + np.exp(-y))
    log_pq = -np.abs(y) - 2 * np.log1p(np.exp(-np.abs(y)))  # log p + log(1 - p), no cancellation
    return (p - lam) / slope, (log_pq - math.log(slope)).sum(axis=1)


def logit_backward(dy, dlog_det, y, lam, levels):
    """Gradient of logit_forward: dx = slope (dy + dlog_det (2p - 1)) / (p (1 - p))."""
    slope = (1 - 2 * lam) / levels
    # 2p - 1 = tanh(y/2) and 1 / (p (1 - p)) = 4 cosh(y/2)^2
    return 4 * slope * np.cosh(y / 2) ** 2 * (dy + dlog_det[:, None] * np.tanh(y / 2))


def logit_inverse_backward(dx, dlog_det, y, lam, levels):
    """Gradient of logit_inverse: dy = dx p (1 - p) / slope - dlog_det (2p - 1)."""
    slope = (1 - 2 * lam) / levels
    return dx / (4 * slope * np.cosh(y / 2) ** 2) - dlog_det[:, None] * np.tanh(y / 2)
