"""Log-densities of factorised distributions on the CPU, summed over features in float64."""

import math

import numpy as np
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import (
    accumulate,
    exp,
    log1p,
    logistic_log_density,
    sigmoid,
    tanh,
)
from npflow.kernels.cpu.threads import CHEAP, block_count, block_rows, kernel, run


@kernel
def _normal(start, stop, z, log_prob):
    d = z.shape[1]
    for i in range(start, stop):
        total = 0.0
        for j in range(d):
            total = accumulate(total, z[i, j] * z[i, j])
        log_prob[i] = -0.5 * total - 0.5 * d * math.log(2 * math.pi)


@kernel
def _normal_backward(start, stop, z, dlog_prob, dz):
    for i in range(start, stop):
        factor = -dlog_prob[i]
        for j in range(z.shape[1]):
            dz[i, j] = factor * z[i, j]


@kernel
def _logistic(start, stop, z, log_prob):
    d = z.shape[1]
    rows = block_rows(d)
    terms = np.empty((rows, d), z.dtype)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(z))
        z_flat, terms_flat = z[first:last].reshape(-1), terms.reshape(-1)
        for k in range(z_flat.size):
            terms_flat[k] = logistic_log_density(z_flat[k])
        for i in range(last - first):
            total = 0.0
            for j in range(d):
                total = accumulate(total, terms[i, j])
            log_prob[first + i] = total


@kernel
def _logistic_backward(start, stop, z, dlog_prob, dz):
    d = z.shape[1]
    rows = block_rows(d)
    half = z.dtype.type(0.5)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(z))
        z_flat, dz_flat = z[first:last].reshape(-1), dz[first:last].reshape(-1)
        for k in range(z_flat.size):
            dz_flat[k] = tanh(half * z_flat[k])
        for i in range(first, last):
            factor = -dlog_prob[i]
            for j in range(d):
                dz[i, j] *= factor


@kernel
def _bernoulli(start, stop, x, logits, log_prob):
    d = x.shape[1]
    rows = block_rows(d)
    zero = x.dtype.type(0)
    terms = np.empty((rows, d), x.dtype)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        x_flat, logits_flat = x[first:last].reshape(-1), logits[first:last].reshape(-1)
        terms_flat = terms.reshape(-1)
        for k in range(x_flat.size):
            # x l - max(l, 0) is exact where it is small, log1p(e^-|l|) is the rest of the softplus.
            logit = logits_flat[k]
            linear = x_flat[k] * logit - (zero if logit < zero else logit)
            terms_flat[k] = linear - log1p(exp(-abs(logit)))
        for i in range(last - first):
            total = 0.0
            for j in range(d):
                total = accumulate(total, terms[i, j])
            log_prob[first + i] = total


@kernel
def _bernoulli_backward(start, stop, x, logits, dlog_prob, dlogits):
    d = x.shape[1]
    rows = block_rows(d)
    for block in range(start, stop):
        first, last = block * rows, min((block + 1) * rows, len(x))
        x_flat, logits_flat = x[first:last].reshape(-1), logits[first:last].reshape(-1)
        dlogits_flat = dlogits[first:last].reshape(-1)
        for k in range(x_flat.size):
            dlogits_flat[k] = x_flat[k] - sigmoid(logits_flat[k])
        for i in range(first, last):
            factor = dlog_prob[i]
            for j in range(d):
                dlogits[i, j] *= factor


def normal_log_prob(z):
    z = as_contiguous(z)
    log_prob = np.empty(len(z), z.dtype)
    run(_normal, len(z), z.size // CHEAP, z, log_prob)
    return log_prob


def normal_log_prob_backward(z, dlog_prob):
    z, dlog_prob = as_contiguous(z), as_contiguous(dlog_prob)
    dz = np.empty_like(z)
    run(_normal_backward, len(z), z.size // CHEAP, z, dlog_prob, dz)
    return dz


def logistic_log_prob(z):
    z = as_contiguous(z)
    log_prob = np.empty(len(z), z.dtype)
    run(_logistic, block_count(z), z.size, z, log_prob)
    return log_prob


def logistic_log_prob_backward(z, dlog_prob):
    z, dlog_prob = as_contiguous(z), as_contiguous(dlog_prob)
    dz = np.empty_like(z)
    run(_logistic_backward, block_count(z), z.size, z, dlog_prob, dz)
    return dz


def bernoulli_log_prob(x, logits):
    x, logits = as_contiguous(x), as_contiguous(logits)
    log_prob = np.empty(len(x), x.dtype)
    run(_bernoulli, block_count(x), x.size, x, logits, log_prob)
    return log_prob


def bernoulli_backward(x, logits, dlog_prob):
    x, logits, dlog_prob = as_contiguous(x), as_contiguous(logits), as_contiguous(dlog_prob)
    dlogits = np.empty_like(logits)
    run(_bernoulli_backward, block_count(x), x.size, x, logits, dlog_prob, dlogits)
    return dlogits
