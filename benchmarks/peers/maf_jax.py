"""Time MAF of the same size in FlowJAX.

Arguments: features hidden layers batch steps count, where count is how many samples to draw (0:
none), which takes FlowJAX `features` passes. Prints one JSON line.
"""

import sys

import jax
import jax.numpy as jnp
from flowjax.bijections import Affine
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from timing_jax import time_flowjax

FEATURES, HIDDEN, LAYERS, BATCH, STEPS, COUNT = map(int, sys.argv[1:])
key = jax.random.key(0)
x = jax.random.normal(key, (BATCH, FEATURES))
flow = masked_autoregressive_flow(
    key,
    base_dist=Normal(jnp.zeros(FEATURES)),
    transformer=Affine(),
    flow_layers=LAYERS,
    nn_width=HIDDEN,
    nn_depth=2,
)
time_flowjax(flow, x, STEPS, COUNT)
