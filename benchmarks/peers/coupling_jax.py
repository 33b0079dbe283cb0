"""Time RealNVP of the same size in JAX (by hand, jitted) and FlowJAX.

Arguments: features hidden couplings batch steps. Prints one JSON line a system.
"""

import sys

import jax
import jax.numpy as jnp
from flowjax.bijections import Affine
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from timing_jax import time_flowjax, time_loss

FEATURES, HIDDEN, COUPLINGS, BATCH, STEPS = map(int, sys.argv[1:])
HALF = FEATURES // 2
REST = FEATURES - HALF
key = jax.random.key(0)
x = jax.random.normal(key, (BATCH, FEATURES))


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

    time_loss("JAX by hand, jit", networks, loss, x, STEPS)


def flowjax():
    flow = coupling_flow(
        key,
        base_dist=Normal(jnp.zeros(FEATURES)),
        transformer=Affine(),
        flow_layers=COUPLINGS,
        nn_width=HIDDEN,
        nn_depth=2,
    )
    time_flowjax(flow, x, STEPS)


by_hand()
flowjax()
