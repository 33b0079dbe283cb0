"""Chains: the memory schedules, their errors, and the flat buffers under them."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from cases import BACKENDS, additive, affine

from npflow import Flow, Memory, models, testing
from npflow.bijections import BatchNorm, Bijection, Chain, Diagonal, Inverse, half
from npflow.bijections.chain import STORE, as_memory, check_drift
from npflow.distributions import StandardNormal
from npflow.errors import CheckpointError, ConfigurationError, InversionDriftError
from npflow.optim import Adam
from npflow.params import Parameter, State, walk

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_direction = pytest.mark.parametrize("direction", ["forward", "training_forward", "inverse"])
PULL_BACK = {
    "forward": "backward",
    "training_forward": "backward",
    "inverse": "inverse_backward",
}


def deep(couplings, backend="reference", dtype="float64", scale=0.3, **options) -> Flow:
    """A RealNVP far from the identity: log-scales of about 0.3 a coupling, as after training."""
    flow = models.realnvp(6, couplings, (16, 16), backend=backend, dtype=dtype, **options)
    testing.randomize(flow.params, scale=scale)
    return flow


def rows(flow: Flow, n=16):
    return flow.backend.array(np.random.default_rng(0).normal(size=(n, 6)))


def walk_both_ways(flow: Flow, direction: str, memory: Memory):
    """z, log_det, dx and all parameter gradients on the host, and the drift."""
    chain, x, host = flow.bijection, rows(flow), flow.backend.to_numpy
    rng = np.random.default_rng(1)
    dz, dlog_det = (flow.backend.array(rng.normal(size=s)) for s in (x.shape, len(x)))
    flow.params.zero_grads()
    z, log_det, cache = getattr(chain, direction)(x, memory=memory)
    dx, _ = getattr(chain, PULL_BACK[direction])(cache, dz, dlog_det)
    values = [host(a).copy() for a in (z, log_det, dx, flow.params.grads)]
    return values, check_drift(chain, cache)


@each_backend
@each_direction
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_recompute_gives_the_bits_of_store(backend, direction, dtype, batch_norm):
    flow = deep(6, backend, dtype, batch_norm=batch_norm)
    stored, drift = walk_both_ways(flow, direction, STORE)
    recomputed, _ = walk_both_ways(flow, direction, Memory("recompute"))
    for a, b in zip(stored, recomputed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert drift == 0


# The largest |difference of the gradients| relative to the largest gradient.
INVERT_TOLERANCE = {
    ("float32", 32): 1e-5,
    ("float32", 64): 1e-4,
    ("float64", 32): 1e-13,
    ("float64", 64): 1e-12,
}


@each_backend
@each_direction
@pytest.mark.parametrize(("dtype", "depth"), INVERT_TOLERANCE)
def test_invert_agrees_with_store(backend, direction, dtype, depth):
    flow = deep(depth, backend, dtype)
    stored, _ = walk_both_ways(flow, direction, STORE)
    inverted, drift = walk_both_ways(flow, direction, Memory("invert"))
    for a, b in zip(stored[:2], inverted[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(stored[2:], inverted[2:], strict=True):
        tolerance = INVERT_TOLERANCE[dtype, depth]
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())
    assert 0 < drift < INVERT_TOLERANCE[dtype, depth]


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_memory_of_the_schedules(backend):
    """Peak bytes of a training step, 16 couplings against 4, as the allocator saw them."""

    def peak(schedule, couplings):
        flow = deep(couplings, backend)
        x = rows(flow, 512)
        flow.nll_and_grad(x, memory=schedule)  # compile
        tracemalloc.start()
        flow.nll_and_grad(x, memory=schedule)
        bytes_at_most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_at_most

    growth = {
        schedule: peak(schedule, 16) / peak(schedule, 4)
        for schedule in ("store", "recompute", "invert")
    }
    assert growth["invert"] < 1.05
    assert growth["invert"] < growth["recompute"] < growth["store"]
    assert growth["store"] > 2.5


@each_direction
def test_anchors_stop_the_drift(direction):
    flow = deep(64, dtype="float32")
    drifts = [
        walk_both_ways(flow, direction, Memory("invert", anchor_every=k))[1] for k in (0, 8, 1)
    ]
    assert drifts[0] > drifts[1] >= drifts[2] > 0
    assert drifts[2] < 1e-6  # one layer's rounding
    chain, x = flow.bijection, rows(flow)
    _, _, cache = getattr(chain, direction)(x, memory=Memory("invert", anchor_every=8))
    assert sorted(cache.kept) == list(range(0, 64, 8))
    _, _, cache = getattr(chain, direction)(x, memory=Memory("invert"))
    assert not cache.kept


@dataclass(eq=False)
class Lossy(Bijection):
    """A layer whose inverse misses by 0.01."""

    def forward(self, x, context=None):
        return x + 1, self.backend.xp.zeros(len(x), x.dtype), ()

    def inverse(self, z, context=None):
        return z - 1.01, self.backend.xp.zeros(len(z), z.dtype), ()

    def backward(self, cache, dz, dlog_det):
        return dz, None

    def inverse_backward(self, cache, dx, dlog_det):
        return dx, None


@each_direction
def test_a_lossy_layer_is_named(direction):
    layers = (affine(6, half(6)), Lossy(), Diagonal(6))
    flow = Flow(StandardNormal(6), Chain(layers), backend="reference", dtype="float64")
    testing.randomize(flow.params)
    with pytest.raises(InversionDriftError, match=r"layer 1 \(Lossy\).*anchor_every"):
        walk_both_ways(flow, direction, Memory("invert"))
    _, drift = walk_both_ways(flow, direction, Memory("invert", drift_bound=0.1))
    assert 1e-3 < drift < 0.1
    walk_both_ways(flow, direction, STORE)


def test_a_drift_that_is_not_a_number_is_an_error():
    flow = deep(2)
    _, _, cache = flow.bijection.forward(rows(flow), memory=Memory("invert"))
    flow.params.values[...] = np.nan
    flow.bijection.backward(cache, rows(flow), np.zeros(16))
    with pytest.raises(InversionDriftError, match="layer 1"):
        check_drift(flow.bijection, cache)


def test_the_flow_reports_drift():
    flow = deep(8, dtype="float32")
    flow.nll_and_grad(rows(flow), memory="invert")
    assert 0 < flow.drift < 1e-4
    flow.nll_and_grad(rows(flow), memory="store")
    assert flow.drift == 0


@pytest.mark.parametrize("nest", [lambda b: b, lambda b: Chain((b,)), Inverse])
def test_batch_norm_is_refused_by_name(nest):
    layers = (affine(6, half(6)), nest(BatchNorm(6)))
    flow = Flow(StandardNormal(6), Chain(layers), backend="reference")
    message = r"layer 1 \(BatchNorm\).*moments.*recompute"
    with pytest.raises(ConfigurationError, match=message):
        flow.nll_and_grad(rows(flow), memory="invert")
    flow.nll_and_grad(rows(flow), memory="recompute")


def test_bad_schedules_are_refused():
    flow = deep(2)
    with pytest.raises(ConfigurationError, match=r"'inverse'; choose store, recompute or invert"):
        flow.nll_and_grad(rows(flow), memory="inverse")
    with pytest.raises(ConfigurationError, match="anchor_every is -1"):
        as_memory(Memory("invert", anchor_every=-1))


@pytest.mark.parametrize(
    "nest", [lambda layers: Chain(layers), lambda layers: Inverse(Chain(layers))]
)
@pytest.mark.parametrize("schedule", ["recompute", "invert"])
def test_nested_chains_take_any_schedule(nest, schedule):
    """Both directions of a chain make the same cache too, so a chain may stand in a chain."""
    inner = nest((affine(6, half(6)), Diagonal(6), additive(6, half(6, flip=True))))
    flow = Flow(
        StandardNormal(6), Chain((Diagonal(6), inner)), backend="reference", dtype="float64"
    )
    testing.randomize(flow.params)
    for direction in PULL_BACK:
        stored, _ = walk_both_ways(flow, direction, STORE)
        found, _ = walk_both_ways(flow, direction, Memory(schedule))
        for a, b in zip(stored, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ["store", "recompute"])
def test_gradients_in_the_other_direction_than_the_cache_was_made_in(schedule):
    flow = deep(4)
    chain, x = flow.bijection, rows(flow)
    dz, dlog_det = np.ones(x.shape), np.ones(len(x))
    z, _, cache = chain.forward(x, memory=Memory(schedule))
    _, _, other = chain.inverse(z, memory=Memory(schedule))
    np.testing.assert_allclose(
        chain.backward(other, dz.copy(), dlog_det)[0],
        chain.backward(cache, dz.copy(), dlog_det)[0],
        rtol=1e-12,
    )
    _, _, cache = chain.inverse(z, memory=Memory("invert"))
    with pytest.raises(ConfigurationError, match="wrong end"):
        chain.backward(cache, dz, dlog_det)


@each_backend
def test_views_share_memory_with_the_flat_buffers(backend, tmp_path):
    flow = deep(3, backend, "float32", batch_norm=True)

    def check():
        for name, member in walk(flow.bijection, "bijection"):
            if not isinstance(member, State):
                continue
            buffer = flow.params.values if isinstance(member, Parameter) else flow.params.state
            xp = flow.backend.xp
            assert xp.may_share_memory(member.value, buffer), name
            np.testing.assert_array_equal(
                flow.backend.to_numpy(member.value), flow.params.to_numpy()[name]
            )
            if isinstance(member, Parameter):
                assert xp.may_share_memory(member.grad, flow.params.grads), name
        assert sum(slot.stop - slot.start for slot in flow.params.table.values()) == (
            flow.params.count
        )

    check()
    flow.initialize(rows(flow))
    check()
    adam = Adam(flow.params, max_norm=1.0)
    before = flow.backend.to_numpy(flow.params.values).copy()
    for _ in range(3):
        flow.nll_and_grad(rows(flow))
        adam.step()
    check()
    assert (flow.backend.to_numpy(flow.params.values) != before).mean() > 0.5
    arrays = flow.params.to_numpy()
    flow.params.load({name: values + 1 for name, values in arrays.items()})
    check()
    for name, values in flow.params.to_numpy().items():
        np.testing.assert_array_equal(values, arrays[name] + 1)
    flow.save(tmp_path / "flow.safetensors")
    flow = Flow.load(tmp_path / "flow.safetensors", backend=backend)
    check()


def test_a_load_that_does_not_fit_changes_nothing():
    flow = deep(2)
    before = flow.params.to_numpy()
    wrong = dict(before) | {next(reversed(before)): np.zeros(1)}
    with pytest.raises(CheckpointError, match=r"has shape \(1,\)"):
        flow.params.load(wrong)
    with pytest.raises(CheckpointError, match="unknown"):
        flow.params.load(before | {"surplus": np.zeros(1)})
    for name, values in flow.params.to_numpy().items():
        np.testing.assert_array_equal(values, before[name])


def test_three_additive_couplings_mix_all_dimensions_and_two_do_not():
    """NICE, section 3.2: with alternating halves 2 leave zeros in the Jacobian, 3 leave none."""
    x = np.random.default_rng(0).normal(size=(3, 6))

    def zeros(couplings):
        chain = Chain(tuple(additive(6, half(6, flip=bool(k % 2))) for k in range(couplings)))
        testing.prepare(chain)
        matrix = testing.jacobian(lambda x: chain.forward(x)[0], x)
        return np.abs(matrix) < 1e-9

    first, second = slice(0, 3), slice(3, 6)
    off_diagonal = ~np.eye(3, dtype=bool)
    # After two, the second half is x_b + m(x_a): no dimension of x_b moves another.
    assert zeros(2)[:, second, second][:, off_diagonal].all()
    assert not zeros(2)[:, first, :].all()
    assert not zeros(3).any()
