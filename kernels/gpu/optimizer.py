"""Updates over whole flat buffers (P,), in place; formulas in reference/optimizer.py."""

import cupy
import numpy as np
from cupy import ndarray

from .launch import ARRAY, DOUBLES, REAL, RESULT, Family, per_element

_family = Family("optimizer")
_squares = _family.kernel("squares", grads=ARRAY, partial=DOUBLES, n=np.int64)
_root_of_sum = _family.kernel("root_of_sum", partial=DOUBLES, norm=RESULT, n=np.int64)
_adam_step = _family.kernel(
    "adam_step", values=RESULT, grads=ARRAY, m=RESULT, v=RESULT, norm=ARRAY, max_norm=REAL,
    learning_rate=REAL, rate1=REAL, rate2=REAL, correction1=REAL, correction2=REAL,
    epsilon=REAL, weight_decay=REAL, n=np.int64,
)  # fmt: skip
_ema_update = _family.kernel("ema_update", average=RESULT, values=ARRAY, rate=REAL, n=np.int64)


def global_norm(grads: ndarray) -> ndarray:
    """The Euclidean norm of grads, accumulated in float64, as an array (1,) on the device.

    Two launches: blocks cannot wait for each other within one.
    """
    blocks = min(-(-grads.size // 256), 1024)  # of the size alone, so the order of adds is fixed
    partial, norm = cupy.empty(blocks, np.float64), cupy.empty(1, grads.dtype)
    _squares(grads.dtype, ((blocks,), (256,)), grads, partial, grads.size)
    _root_of_sum(grads.dtype, ((1,), (256,)), partial, norm, blocks)
    return norm


def adam_step(
    values: ndarray,
    grads: ndarray,
    m: ndarray,
    v: ndarray,
    norm: ndarray,
    max_norm: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
) -> None:
    """One step of Adam with clipping and decoupled weight decay; nothing if norm is not finite."""
    _adam_step(
        values.dtype, per_element(values.size), values, grads, m, v, norm, max_norm, learning_rate,
        1 - beta1, 1 - beta2, 1 - beta1**step, 1 - beta2**step, epsilon, weight_decay, values.size,
    )  # fmt: skip


def ema_update(average: ndarray, values: ndarray, decay: float) -> None:
    """average = decay average + (1 - decay) values."""
    _ema_update(values.dtype, per_element(values.size), average, values, 1 - decay, values.size)
