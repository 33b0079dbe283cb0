"""Time RealNVP of the same size in JAX (by hand, jitted) and FlowJAX.

Arguments: features hidden couplings batch steps. Prints one JSON line a system.
"""

import json
import statistics
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import paramax
from flowjax.bijections import Affine
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow

FEATURES, HIDDEN, COUPLINGS, BATCH, STEPS = map(int, sys.argv[1:])
HALF = FEATURES // 2
REST = FEATURES - HALF
key = jax.random.key(0)
x = jax.random.normal(key, (BATCH, FEATURES))


def report(system, parameters, loss):
    optimizer = optax.adam(1e-4)
    count = sum(p.size for p in jax.tree.leaves(parameters))
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
        "system": system,
        "parameters": count,
        "step_ms": median_ms(step),
        "density_ms": median_ms(lambda: density(parameters, x).block_until_ready()),
    }
    print(json.dumps(result), flush=True)


def median_ms(function):
    for _ in range(3):
        function()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def by_hand():
    def linear(key, inputs, outputs):
        return jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, jnp.zeros(outputs)

    networks = []
    for k in jax.random.split(key, COUPLINGS):
        k1, k2, k3 = jax.random.split(k, 3)
        networks.append(
            [linear(k1, HALF, HIDDEN), linear(k2, HIDDEN, HIDDEN), linear(k3, HIDDEN, 2 * REST)]
        )

    def loss(networks, x):
        a, b = x[:, :HALF], x[:, HALF:]
        log_det = 0.0
        for (w1, b1), (w2, b2), (w3, b3) in networks:
            h = jax.nn.relu(jax.nn.relu(a @ w1 + b1) @ w2 + b2) @ w3 + b3
            log_scale = jnp.tanh(h[:, REST:])
            a, b = b * jnp.exp(log_scale) + h[:, :REST], a
            log_det = log_det + log_scale.sum(1)
        z = jnp.concatenate([a, b], 1)
        log_prob = -0.5 * (z * z).sum(1) - 0.5 * FEATURES * 1.8378770664093453 + log_det
        return -log_prob.mean()

    report("JAX by hand, jit", networks, loss)


def flowjax():
    flow = coupling_flow(
        key,
        base_dist=Normal(jnp.zeros(FEATURES)),
        transformer=Affine(),
        flow_layers=COUPLINGS,
        nn_width=HIDDEN,
        nn_depth=2,
    )
    parameters, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )

    def loss(parameters, x):
        return -paramax.unwrap(eqx.combine(parameters, static)).log_prob(x).mean()

    report("FlowJAX", parameters, loss)


by_hand()
flowjax()
