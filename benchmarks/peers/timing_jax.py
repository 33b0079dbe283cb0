"""Time a JAX flow, jitted: a training step, a density pass and, if asked, sampling."""

import equinox as eqx
import jax
import optax
import paramax
from timing import median_ms, once_ms, report


def time_loss(system, parameters, loss, x, steps, sample=None, count=0):
    """sample(parameters, n) draws n samples; count of them are timed (0: none)."""
    optimizer = optax.adam(1e-4)
    size = sum(p.size for p in jax.tree.leaves(parameters))
    carry = (parameters, optimizer.init(parameters))

    @jax.jit
    def update(parameters, state, x):
        value, grads = jax.value_and_grad(loss)(parameters, x)
        updates, state = optimizer.update(grads, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    def step():
        nonlocal carry
        *carry, value = update(*carry, x)
        value.block_until_ready()

    density = jax.jit(loss)
    result = {
        "parameters": size,
        "step_ms": median_ms(step, steps),
        "density_ms": median_ms(lambda: density(carry[0], x).block_until_ready(), steps),
    }
    if count:
        draw = jax.jit(lambda parameters: sample(parameters, count)).lower(carry[0]).compile()
        result[f"sample_{count}_ms"] = once_ms(lambda: draw(carry[0]).block_until_ready())
    report(system, **result)


def time_flowjax(flow, x, steps, count=0):
    parameters, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )

    def whole(parameters):
        return paramax.unwrap(eqx.combine(parameters, static))

    def loss(parameters, x):
        return -whole(parameters).log_prob(x).mean()

    def sample(parameters, n):
        return whole(parameters).sample(jax.random.key(0), (n,))

    time_loss("FlowJAX", parameters, loss, x, steps, sample, count)
