"""Mixtures of Gaussians, one a feature: the output of a real-valued MADE (docs/made.md).

p(x) = prod_i sum_k w_ik N(x_i; mean_ik, sigma_ik^2),  w_i = softmax(logits_i), sigma = e^log_scale

Shapes: x, dx (B, d); params, dparams (B, 3K d), part-major: logits, means and log-scales, each of K
components, each component of d features; log_prob, dlog_prob (B,). In nats.
"""

import math

import numpy as np


def _components(params, d):
    """The logits, means and log-scales, each (B, K, d)."""
    batch = len(params)
    return np.moveaxis(params.reshape(batch, 3, params.shape[1] // (3 * d), d), 1, 0)


def _log_softmax(terms):
    """log softmax (B, K, d) and log-sum-exp (B, 1, d) over k, with the largest term taken out."""
    highest = terms.max(axis=1, keepdims=True)
    terms = terms - highest
    log_total = np.log(np.exp(terms).sum(axis=1, keepdims=True))
    return terms - log_total, highest + log_total


def _joint(x, params):
    """log w, log(w N(x)), the precision 1 / sigma and u = (x - mean) / sigma, each (B, K, d)."""
    logits, means, log_scales = _components(params, x.shape[1])
    # A sigma that underflows must give weight 0 and not inf - inf: u^2 and u / sigma stay in range.
    limit = np.sqrt(np.finfo(x.dtype).max) / 2
    precision = np.exp(np.minimum(-log_scales, np.log(limit)))
    u = np.clip((x[:, None] - means) * precision, -limit, limit)
    log_w, _ = _log_softmax(logits)
    return log_w, log_w - log_scales - 0.5 * u * u - 0.5 * math.log(2 * math.pi), precision, u


def mixture_log_prob(x, params):
    """sum_i log sum_k w_ik N(x_i; mean_ik, sigma_ik^2)."""
    _, joint, _, _ = _joint(x, params)
    _, log_density = _log_softmax(joint)
    return log_density.sum(axis=(1, 2))


def mixture_backward(x, params, dlog_prob):
    """dx and dparams, from the responsibilities r_k = w_k N_k / sum_k w_k N_k."""
    log_w, joint, precision, u = _joint(x, params)
    r = np.exp(_log_softmax(joint)[0])
    dlog_prob = dlog_prob[:, None, None]
    dlogits = dlog_prob * (r - np.exp(log_w))
    dmeans = dlog_prob * r * u * precision
    dlog_scales = dlog_prob * r * (u * u - 1)
    dparams = np.stack((dlogits, dmeans, dlog_scales), axis=1)
    return -dmeans.sum(axis=1), dparams.reshape(params.shape)


def mixture_sample(noise, params):
    """x (B, d) from noise (B, 2d) = [normal | uniform]: the uniform picks the component.

    Component k is the first whose cumulated weight exceeds the uniform; x = mean + sigma normal.
    """
    d = noise.shape[1] // 2
    normal, uniform = noise[:, :d], noise[:, d:]
    logits, means, log_scales = _components(params, d)
    cumulated = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    below = cumulated[:, :-1] <= (uniform * cumulated[:, -1])[:, None]
    component = below.sum(axis=1, keepdims=True)
    mean, log_scale = (np.take_along_axis(a, component, 1)[:, 0] for a in (means, log_scales))
    return mean + np.exp(log_scale) * normal
