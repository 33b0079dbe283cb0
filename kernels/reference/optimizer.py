"""Updates over whole flat buffers (P,), in place."""

import numpy as np


def global_norm(grads):
    """The Euclidean norm of grads, accumulated in float64, as an array of one element."""
    return np.sqrt(np.square(grads, dtype=np.float64).sum(keepdims=True)).astype(grads.dtype)


def adam_step(
    values, grads, m, v, norm, max_norm, learning_rate, beta1, beta2, epsilon, weight_decay, step
):
    """One step of Adam with bias correction, gradient clipping and decoupled weight decay.

        g = grads min(1, max_norm / norm)
        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        values -= learning_rate (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
                                 + weight_decay values)

    step counts from 1. norm is an array of one element (zero where nothing is to be clipped), so
    that a GPU need not wait for it; if it is not finite, nothing is changed.
    Source: arXiv:1412.6980, algorithm 1; arXiv:1711.05101, algorithm 2; clipping arXiv:1211.5063.
    """
    if not np.isfinite(norm[0]):
        return
    clip = min(1.0, max_norm / norm[0]) if norm[0] > 0 else 1.0
    g = grads * values.dtype.type(clip)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    values -= learning_rate * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * values)


def ema_update(average, values, decay):
    """average = decay average + (1 - decay) values."""
    average += (1 - decay) * (values - average)
