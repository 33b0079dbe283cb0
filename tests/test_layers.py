"""The generic tests: every layer of cases.py, on every backend."""

import numpy as np
import pytest
from cases import BACKENDS, BACKENDS_OF_DIFFERENCES, CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from npflow import models, testing
from npflow.bijections import BatchNorm
from npflow.distributions import Logistic
from npflow.errors import ShapeError

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_backend_of_differences = pytest.mark.parametrize("backend", BACKENDS_OF_DIFFERENCES)
each_case = pytest.mark.parametrize("name", CASES)
shapes = st.tuples(st.integers(1, 9), st.integers(2, 7))
seeds = st.integers(0, 2**16)
TRAINED = 0.3  # random parameters that leave log-scales of about 0.3 a coupling, as after training
few = settings(max_examples=8, deadline=None, derandomize=True)


def strided(x, xp):
    """The same numbers in memory that is contiguous in neither axis."""
    wide = xp.full((2 * x.shape[1] + 1, 3 * len(x)), np.nan, x.dtype)
    view = wide[1::2, ::3].T[: len(x), : x.shape[1]]
    view[...] = x
    return view


@each_backend
@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@few
@given(shape=shapes, seed=seeds)
def test_inverse(name, backend, dtype, shape, seed):
    case = CASES[name](shape[1])
    case.prepare(backend, dtype, seed)
    x, context = case.arrays(shape[0], seed)
    testing.check_inverse(case.layer, x, context)
    z, log_det, _ = case.layer.forward(x, context)
    assert z.dtype == log_det.dtype == x.dtype == dtype


@each_backend_of_differences
@each_case
@few
@given(shape=shapes, seed=seeds)
def test_log_det(name, backend, shape, seed):
    case = CASES[name](shape[1])
    case.prepare(backend, seed=seed)
    x, context = case.smooth_arrays(shape[0], seed)
    testing.check_log_det(case.layer, x, context, step=case.step)


@each_backend_of_differences
@each_case
@settings(few, max_examples=3)
@given(shape=st.tuples(st.integers(1, 4), st.integers(2, 5)), seed=seeds)
def test_gradients(name, backend, shape, seed):
    case = CASES[name](shape[1])
    case.prepare(backend, seed=seed)
    x, context = case.smooth_arrays(shape[0], seed)
    testing.check_gradients(case.layer, x, context, seed=seed, step=case.step)


@each_backend
@each_case
def test_input_may_be_strided(name, backend):
    case = CASES[name](5)
    case.prepare(backend)
    xp, host = case.layer.backend.xp, case.layer.backend.to_numpy
    x, context = case.arrays(4, seed=0)
    z, log_det, cache = case.layer.forward(x, context)
    z_strided, log_det_strided, cache_strided = case.layer.forward(strided(x, xp), context)
    np.testing.assert_allclose(host(z_strided), host(z), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(host(log_det_strided), host(log_det), rtol=1e-14, atol=1e-14)
    rng = np.random.default_rng(0)
    dz, dlog_det = (xp.asarray(rng.normal(size=shape)) for shape in (z.shape, len(z)))
    dx, _ = case.layer.backward(cache, dz.copy(), dlog_det)
    dx_strided, _ = case.layer.backward(cache_strided, strided(dz, xp), dlog_det)
    np.testing.assert_allclose(host(dx_strided), host(dx), rtol=1e-13, atol=1e-13)


@each_backend
@each_case
def test_rows_do_not_interact(name, backend):
    """The density of a point does not depend on which others are asked for with it."""
    case = CASES[name](5)
    case.prepare(backend)
    x, context = case.arrays(6, seed=0)
    array = case.layer.backend.to_numpy
    z, log_det, _ = case.layer.forward(x, context)
    alone, log_det_alone, _ = case.layer.forward(x[2:3], None if context is None else context[2:3])
    np.testing.assert_allclose(array(alone), array(z[2:3]), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(array(log_det_alone), array(log_det[2:3]), rtol=1e-13, atol=1e-13)


@each_backend
@each_case
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_agrees_with_the_float64_reference(name, backend, direction, dtype, tolerance):
    """The same parameters and input: values, log-dets and gradients up to rounding."""
    case, exact = CASES[name](5), CASES[name](5)
    store, exact_store = case.prepare(backend, dtype), exact.prepare()
    exact_store.load({k: v.astype(np.float64) for k, v in store.to_numpy().items()})
    rng = np.random.default_rng(0)
    host = case.layer.backend.to_numpy

    x, context = exact.arrays(7, seed=0)
    if direction == "inverse":
        x = exact.layer.forward(x, context)[0].astype(np.float32).astype(np.float64)
    dz, dlog_det = rng.normal(size=x.shape), rng.normal(size=7)

    def run(layer):
        array = layer.backend.array  # of a copy: backward may overwrite dz
        arrays = [None if a is None else array(a.copy()) for a in (x, context, dz, dlog_det)]
        pull_back = {"forward": "backward", "inverse": "inverse_backward"}[direction]
        z, log_det, cache = getattr(layer, direction)(*arrays[:2])
        dx, dcontext = getattr(layer, pull_back)(cache, *arrays[2:])
        return [z, log_det, dx] + ([] if dcontext is None else [dcontext])

    results, expected = run(case.layer), run(exact.layer)
    results.append(store.grads)
    expected.append(exact_store.grads)
    for found, want in zip(results, expected, strict=True):
        scale = 1 + np.abs(want).max(initial=0)
        np.testing.assert_allclose(host(found), want, rtol=0, atol=tolerance * scale)


@each_backend
@pytest.mark.parametrize("shape", [(2, 3), (5, 2), (9, 4)])
def test_training_gradients_of_batch_norm(backend, shape):
    """With the batch's own moments rows interact: the function is of the whole batch."""
    layer = BatchNorm(shape[1])
    testing.prepare(layer, backend)
    x = np.random.default_rng(0).normal(size=shape) + 2 * np.arange(shape[0])[:, None]
    x = layer.backend.array(x)  # spread out: two rows that nearly meet bend too sharply
    reports = testing.check_gradients(layer, x, directions=("training_forward",))
    assert {r.tensor for r in reports} == {"x", "log_gamma", "beta"}
    with pytest.raises(ShapeError, match="batch of 1"):
        layer.training_forward(x[:1])


@each_backend
def test_training_log_det_of_batch_norm(backend):
    """log_det of every row is log gamma - 1/2 log(var + epsilon), with the batch's variance."""
    layer = BatchNorm(3)
    testing.prepare(layer, backend)
    host = layer.backend.to_numpy
    x = np.random.default_rng(0).normal(2, 3, size=(50, 3))
    z, log_det, _ = layer.training_forward(layer.backend.array(x))
    log_gamma, beta = host(layer.log_gamma.value), host(layer.beta.value)
    expected = (log_gamma - 0.5 * np.log(x.var(axis=0) + layer.epsilon)).sum()
    np.testing.assert_allclose(host(log_det), np.full(50, expected), rtol=1e-13)
    np.testing.assert_allclose(host(z).mean(axis=0), beta, atol=1e-13)
    spread = np.exp(log_gamma) * x.std(axis=0) / np.sqrt(x.var(axis=0) + layer.epsilon)
    np.testing.assert_allclose(host(z).std(axis=0), spread, rtol=1e-13)


@each_backend
@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_gradient_of_a_whole_flow(backend, memory):
    """8 couplings of width 16: one direction over all parameters, relative error 1e-8."""
    flow = models.realnvp(4, 8, (16, 16), activation="tanh", backend=backend, dtype="float64")
    testing.randomize(flow.params, scale=TRAINED)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(32, 4)))
    for seed in range(3):
        testing.check_flow_gradients(flow, x, seed=seed, memory=memory)


@each_backend
def test_gradient_of_a_flow_with_batch_norm_and_context(backend):
    flow = models.realnvp(
        5, 4, (8,), activation="tanh", batch_norm=True, context_features=2, masks="parity",
        backend=backend, dtype="float64",
    )  # fmt: skip
    testing.randomize(flow.params, scale=TRAINED)
    rng = np.random.default_rng(0)
    x, context = (flow.backend.array(rng.normal(size=(16, d))) for d in (5, 2))
    testing.check_flow_gradients(flow, x, context, memory="recompute")


@each_backend
def test_gradient_of_nice(backend):
    flow = models.nice(5, 4, (8, 8), activation="tanh", backend=backend, dtype="float64")
    assert isinstance(flow.base, Logistic)
    testing.randomize(flow.params, scale=TRAINED)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(16, 5)))
    testing.check_flow_gradients(flow, x)


@each_backend
def test_log_det_and_gradients_of_a_deep_chain(backend):
    """The whole map: log_det against the determinants of D x D Jacobians, to 1e-10."""
    flow = models.realnvp(5, 8, (8, 8), activation="tanh", backend=backend, dtype="float64")
    testing.randomize(flow.params, scale=TRAINED)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(4, 5)))
    testing.check_log_det(flow.bijection, x, tolerance=1e-10)


@each_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_round_trip_of_32_couplings(backend, dtype, tolerance):
    flow = models.realnvp(6, 32, (32, 32), backend=backend, dtype=dtype)
    testing.randomize(flow.params, scale=TRAINED)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(256, 6)))
    _, log_det, _ = flow.bijection.forward(x)
    assert flow.backend.to_numpy(abs(log_det)).max() > 1, "the map must not be near the identity"
    testing.check_inverse(flow.bijection, x, tolerance=tolerance)
