"""Updates over whole flat buffers on the CPU, each one pass over memory."""

import numpy as np

from npflow.kernels.cpu.math import accumulate
from npflow.kernels.cpu.threads import CHEAP, kernel, run

# The norm is summed over chunks of this many elements, whatever the number of threads.
_CHUNK = 16384


@kernel
def _sum_of_squares(start, stop, grads, parts):
    for chunk in range(start, stop):
        part = grads[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        total = 0.0
        for k in range(part.size):
            total = accumulate(total, np.float64(part[k]) * np.float64(part[k]))
        parts[chunk] = total


@kernel
def _root(parts, norm):
    total = 0.0
    for chunk in range(len(parts)):
        total += parts[chunk]
    norm[0] = np.sqrt(total)


@kernel
def _adam(start, stop, values, grads, m, v, norm, max_norm, rate, b1, b2, eps, decay, step):
    if not np.isfinite(norm[0]):
        return
    real = values.dtype.type
    clip = real(min(1.0, max_norm / norm[0]) if norm[0] > 0 else 1.0)
    gain1, gain2 = real(1 - b1), real(1 - b2)
    correction1, correction2 = real(1 / (1 - b1**step)), real(1 / (1 - b2**step))
    rate, eps, decay = real(rate), real(eps), real(decay)
    values, grads, m, v = values[start:stop], grads[start:stop], m[start:stop], v[start:stop]
    for k in range(values.size):
        g = clip * grads[k]
        m_k = m[k] + gain1 * (g - m[k])
        v_k = v[k] + gain2 * (g * g - v[k])
        m[k], v[k] = m_k, v_k
        direction = m_k * correction1 / (np.sqrt(v_k * correction2) + eps)
        values[k] -= rate * (direction + decay * values[k])


@kernel
def _ema(start, stop, average, values, decay):
    gain = average.dtype.type(1 - decay)
    average, values = average[start:stop], values[start:stop]
    for k in range(values.size):
        average[k] += gain * (values[k] - average[k])


def global_norm(grads):
    chunks = -(-grads.size // _CHUNK)
    parts, norm = np.empty(chunks), np.empty(1, grads.dtype)
    run(_sum_of_squares, chunks, grads.size // CHEAP, grads, parts)
    _root(parts, norm)
    return norm


def adam_step(
    values, grads, m, v, norm, max_norm, learning_rate, beta1, beta2, epsilon, weight_decay, step
):
    settings = max_norm, learning_rate, beta1, beta2, epsilon, weight_decay
    work = values.size // CHEAP
    run(_adam, values.size, work, values, grads, m, v, norm, *map(float, settings), step)


def ema_update(average, values, decay):
    run(_ema, values.size, values.size // CHEAP, average, values, float(decay))
