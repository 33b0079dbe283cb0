"""Log-densities of factorised distributions, summed over features, and their gradients.

Shapes: z, dz, x, logits, dlogits (B, D); log_prob, dlog_prob (B,). In nats.
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


def bernoulli_log_prob(x, logits):
    """x in {0, 1} of probability sigmoid(logits): sum_j x_j l_j - log(1 + e^l_j)."""
    softplus_rest = np.log1p(np.exp(-np.abs(logits)))
    return (x * logits - np.maximum(logits, 0) - softplus_rest).sum(axis=1)


def bernoulli_backward(x, logits, dlog_prob):
    """dlogits = (x - sigmoid(logits)) dlog_prob."""
    e = np.exp(-np.abs(logits))
    return (x - np.where(logits >= 0, 1, e) / (1 + e)) * dlog_prob[:, None]
