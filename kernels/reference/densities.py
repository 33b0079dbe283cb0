"""Log-densities of factorised base distributions, summed over features, and their gradients.

Shapes: z, dz (B, D); log_prob, dlog_prob (B,). In nats.
"""

import math

import numpy as np


def normal_log_prob(z):
    """Standard normal: -1/2 sum_j z_j^2 - D/2 log(2 pi)."""
    return -0.5 * (z * z).sum(axis=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


def normal_log_prob_backward(z, dlog_prob):
    """dz = -z dlog_prob."""
    return -z * dlog_prob[:, None]


def logistic_log_prob(z):
    """Standard logistic: -sum_j log(1 + e^z_j) + log(1 + e^-z_j) (arXiv:1410.8516)."""
    absolute = np.abs(z)
    return -(absolute + 2 * np.log1p(np.exp(-absolute))).sum(axis=1)


def logistic_log_prob_backward(z, dlog_prob):
    """dz = -tanh(z / 2) dlog_prob."""
    return -np.tanh(z / 2) * dlog_prob[:, None]
