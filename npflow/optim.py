"""Adam over the flat buffer, learning-rate schedules, and an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

from npflow.backend import Array
from npflow.errors import ConfigurationError
from npflow.params import ParamStore

Schedule = Callable[[int], float]  # step, from 0 -> factor of the learning rate


def constant() -> Schedule:
    """1 at every step."""
    return lambda step: 1.0


def exponential(decay: float, steps_per_epoch: int) -> Schedule:
    """decay^epoch, constant within an epoch."""
    return lambda step: decay ** (step // steps_per_epoch)


def cosine(total_steps: int, final: float = 0.0) -> Schedule:
    """From 1 to final along half a cosine over total_steps (arXiv:1608.03983, eq. 5)."""

    def factor(step: int) -> float:
        progress = min(1.0, step / total_steps)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warm_up(steps: int, then: Schedule) -> Schedule:
    """`then`, scaled linearly from 1/steps to 1 over the first steps."""
    return lambda step: then(step) * min(1.0, (step + 1) / max(steps, 1))


class Adam:
    """Adam (arXiv:1412.6980) over all parameters of a store in one kernel.

    learning_rate : the step size, scaled by the factor given to `step`
    weight_decay  : decoupled (arXiv:1711.05101): values -= learning_rate * weight_decay * values
    max_norm      : gradients with a larger global norm are scaled down to it; None: no clipping
    """

    def __init__(
        self,
        params: ParamStore,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ):
        if not (learning_rate > 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0):
            raise ConfigurationError(
                f"learning_rate={learning_rate}, beta1={beta1}, beta2={beta2}, epsilon={epsilon}; "
                "expected learning_rate > 0, 0 <= beta < 1 and epsilon > 0"
            )
        if not weight_decay >= 0:
            raise ConfigurationError(f"weight_decay is {weight_decay}; expected 0 or more")
        if max_norm is not None and not max_norm > 0:
            raise ConfigurationError(f"max_norm is {max_norm}; expected a positive number or None")
        self.params = params
        self.learning_rate = learning_rate
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        self.max_norm = max_norm
        self.m = params.backend.xp.zeros_like(params.values)
        self.v = params.backend.xp.zeros_like(params.values)
        self.steps = 0
        # The gradient's norm before clipping, (1,); zero where nothing is clipped.
        self.norm: Array = params.backend.xp.zeros(1, params.backend.dtype)

    def step(self, factor: float = 1.0) -> None:
        """One update of `params.values` from `params.grads`."""
        kernels, params = self.params.backend.kernels, self.params
        clips = self.max_norm is not None
        if clips:
            self.norm = kernels.global_norm(params.grads)
        self.steps += 1
        kernels.adam_step(
            params.values, params.grads, self.m, self.v, self.norm,
            self.max_norm if clips else math.inf, self.learning_rate * factor,
            self.beta1, self.beta2, self.epsilon, self.weight_decay, self.steps,
        )  # fmt: skip


class WeightAverage:
    """Exponential moving average of all parameters.

    The decay of the n-th update is min(decay, (1 + n) / (10 + n)), so that early averages forget
    the first values quickly.
    """

    def __init__(self, params: ParamStore, decay: float):
        if not 0 < decay < 1:
            raise ConfigurationError(f"the decay of the average is {decay}; expected 0 < decay < 1")
        self.params = params
        self.decay = decay
        self.average: Array = params.values.copy()

    def update(self, step: int) -> None:
        """Take in the values after the step-th update, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self.params.backend.kernels.ema_update(self.average, self.params.values, decay)

    def swap(self) -> None:
        """Exchange the average and the parameters in place; call again to change back."""
        values = self.params.values.copy()
        self.params.values[...] = self.average
        self.average[...] = values
