"""ActNorm and the invertible 1x1 convolution: kernels, both forms of W, the factorisation kept."""

import numpy as np
import pytest
from cases import BACKENDS

from npflow import Flow, get_backend, testing
from npflow.bijections import ActNorm, Chain, Diagonal, Inverse, InvertibleConv1x1, Reshape
from npflow.bijections.conv1x1 import _orthogonal, _plu
from npflow.distributions import StandardNormal
from npflow.errors import ConfigurationError, NonFiniteError, ShapeError, SingularMatrixError
from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads
from npflow.params import ParamStore, from_config, to_config

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_form = pytest.mark.parametrize("form", ["dense", "plu"])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = [(1, 1), (3, 2), (37, 5), (1, 3, 5, 4), (5, 7, 3, 12), (3, 2, 2, 33), (2, 1, 1, 300),
          (70, 9, 5, 3), (4099, 1)]  # fmt: skip


def arrays(shape, dtype, contiguous=True):
    """x, a second array like it, dlog_det, log_scale, shift, dlog_scale, dshift."""
    rng = np.random.default_rng(sum(shape))
    c, made = shape[-1], []
    for size in (shape, shape, shape[:1], (c,), (c,), (c,), (c,)):
        a = rng.normal(size=size).astype(dtype)
        if not contiguous:
            wide = np.full((*size[:-1], 2 * size[-1]), np.nan, dtype)
            wide[..., ::2] = a
            a = wide[..., ::2]
        made.append(a)
    return made


def run_actnorm(kernels, x, g, dlog_det, log_scale, shift, dlog_scale, dshift):
    """All that the four kernels return or add to, by name."""
    results = {}
    for name in ("forward", "inverse"):
        z, log_det = getattr(kernels, f"actnorm_{name}")(x, log_scale, shift)
        results |= {f"{name} z": z, f"{name} log_det": log_det}
    for name in ("backward", "inverse_backward"):
        sums = dlog_scale.copy(), dshift.copy()
        dx = getattr(kernels, f"actnorm_{name}")(g, dlog_det, x, log_scale, *sums)
        results |= {f"{name} dx": dx, f"{name} dlog_scale": sums[0], f"{name} dshift": sums[1]}
    return results


def error(found, expected):
    return np.max(np.abs(found - expected)) / np.abs(expected).max()


@each_dtype
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_actnorm_kernels_agree_with_the_reference(shape, contiguous, dtype):
    args = arrays(shape, dtype, contiguous)
    found = run_actnorm(cpu, *args)
    expected = run_actnorm(reference, *(a.astype(np.float64) for a in args))
    bound = 8 * np.finfo(dtype).eps
    for name in expected:
        assert found[name].dtype == dtype and found[name].shape == expected[name].shape
        terms = args[0].size // shape[-1]  # of a sum, which may cancel
        slack = np.sqrt(terms) if dtype == "float64" and "d" in name.split()[1] else 1
        assert error(found[name], expected[name]) < bound * slack, name
    if np.prod(shape) > 4:  # the bound rejects a scale that is off by a few parts in a million
        args[3] = args[3] + 1e-5
        wrong = run_actnorm(cpu, *args)
        assert error(wrong["forward z"], expected["forward z"]) > bound


@each_dtype
def test_actnorm_kernels_do_not_depend_on_the_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(threads, "THRESHOLD", 0)
    for shape in SHAPES:
        args = arrays(shape, dtype)
        monkeypatch.setattr(threads, "THREADS", 1)
        alone = run_actnorm(cpu, *args)
        for count in (2, 3):
            monkeypatch.setattr(threads, "THREADS", count)
            for name, found in run_actnorm(cpu, *args).items():
                np.testing.assert_array_equal(found, alone[name])


@each_backend
@each_dtype
@pytest.mark.parametrize("shape", [(500, 3), (40, 5, 2, 3)])
def test_actnorm_starts_with_mean_0_and_deviation_1(shape, dtype, backend):
    layer = ActNorm(3)
    flow = Flow(
        StandardNormal(int(np.prod(shape[1:]))),
        Chain((layer, Reshape(shape[1:], (int(np.prod(shape[1:])),)))),
        shape=shape[1:], backend=backend, dtype=dtype,
    )  # fmt: skip
    x = np.random.default_rng(0).normal([5.0, -100.0, 0.0], [3.0, 1.0, 1e-3], size=shape)
    flow.initialize(flow.backend.array(x))
    z = flow.backend.to_numpy(layer.forward(flow.backend.array(x))[0]).reshape(-1, 3)
    tolerance = 1e-4 if dtype == "float32" else 1e-12  # 100 deviations from 0: 2 digits are lost
    assert np.abs(z.mean(axis=0, dtype=np.float64)).max() < tolerance
    assert np.abs(z.std(axis=0, dtype=np.float64) - 1).max() < tolerance


@each_backend
def test_bad_input_to_actnorm(backend):
    layer = ActNorm(3)
    ParamStore(layer, get_backend(backend))
    x = layer.backend.xp.ones((4, 3), layer.backend.dtype)
    with pytest.raises(ShapeError, match="channel does not vary"):
        layer.initialize(x)
    for wrong in (x[:, :2], x.reshape(2, 6), x[0]):
        for call in (layer.forward, layer.inverse, layer.initialize):
            with pytest.raises(ShapeError, match=r"expected \(batch, ..., 3\)"):
                call(wrong)


# ---- the inverse of a matrix


def made_for(n, dtype):
    """factored, inverse, log_det, count before the first call."""
    return (np.full((n, n), np.nan, dtype), np.full((n, n), np.nan, dtype),
            np.full(1, np.nan, dtype), np.zeros(1, np.int64))  # fmt: skip


@each_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 33, 96])
def test_inverse_of_a_matrix(n, dtype):
    rng = np.random.default_rng(n)
    weight = rng.normal(size=(n, n)).astype(dtype)
    weight[np.diag_indices(n)] *= n == 1  # zeros where a pivot is wanted
    for kernels in (reference, cpu):
        state = made_for(n, dtype)
        kernels.update_inverse(weight, *state)
        factored, inverse, log_det, count = state
        exact = weight.astype(np.float64)
        condition = np.linalg.cond(exact)
        eps = np.finfo(dtype).eps
        assert error(inverse, np.linalg.inv(exact)) < eps + 16 * condition * 2.3e-16
        expected = np.linalg.slogdet(exact)[1]
        assert abs(log_det[0] - expected) < eps * abs(expected) + 16 * condition * 2.3e-16
        assert count[0] == 1 and factored.tobytes() == weight.tobytes()
        wrong = exact.copy()
        wrong[0, 0] += 1e-3  # the bounds reject the inverse of a slightly different matrix
        assert error(inverse, np.linalg.inv(wrong)) > 100 * eps


@pytest.mark.parametrize("kernels", [reference, cpu])
def test_a_matrix_that_has_not_changed_is_left_alone(kernels):
    weight = np.random.default_rng(0).normal(size=(5, 5))
    state = made_for(5, np.float64)
    kernels.update_inverse(weight, *state)
    state[1][...] = 7  # a call that writes would be seen
    state[2][...] = 7
    kernels.update_inverse(weight, *state)
    kernels.update_inverse(weight.copy(), *state)
    assert (state[1] == 7).all() and state[2] == 7 and state[3] == 1
    weight[4, 2] = np.nextafter(weight[4, 2], 1)  # one bit of one element
    kernels.update_inverse(weight, *state)
    assert (state[1] != 7).all() and state[2] != 7 and state[3] == 2


@each_dtype
@pytest.mark.parametrize("kernels", [reference, cpu])
def test_singular_and_nearly_singular_matrices(kernels, dtype):
    eps = np.finfo(dtype).eps
    rotation = _orthogonal(6, 0)

    def log_det(weight):
        state = made_for(len(weight), dtype)
        kernels.update_inverse(weight.astype(dtype), *state)
        assert np.isnan(state[1]).all() == np.isnan(state[2][0])
        return state[2][0]

    repeated = rotation.copy()
    repeated[5] = repeated[2]
    zeros, infinite, nan = np.zeros((1, 1)), np.full((2, 2), np.inf), np.diag([1, np.nan])
    for weight in (zeros, infinite, nan, repeated, np.ones((4, 4)), np.diag([1, eps / 2])):
        assert np.isnan(log_det(weight))
    # The threshold is of the condition number and nothing else: a small scale is fine.
    assert abs(log_det(np.diag([1, 2 * eps])) - np.log(2 * eps)) < 1e-5
    assert abs(log_det(1e-6 * rotation) - 6 * np.log(1e-6)) < 1e-4


# ---- the 1x1 convolution


@pytest.mark.parametrize("channels", [1, 2, 5, 12, 48])
def test_both_forms_start_at_the_same_orthogonal_matrix(channels):
    dense, plu = (InvertibleConv1x1(channels, form, seed=3) for form in ("dense", "plu"))
    for layer in (dense, plu):
        ParamStore(layer, get_backend("reference", "float64"))
    weight = dense._weight()
    np.testing.assert_allclose(weight @ weight.T, np.eye(channels), atol=1e-14)
    np.testing.assert_allclose(plu._weight(), weight, atol=1e-14)
    x = np.random.default_rng(0).normal(size=(4, 3, 2, channels))
    for layer in (dense, plu):
        assert np.abs(layer.forward(x)[1]).max() < 1e-12
    assert (np.abs(plu.lower.value) <= 1).all()  # partial pivoting
    same, other = _orthogonal(channels, 3), _orthogonal(channels, 4)
    assert (same == weight).all() and (channels == 1 or not np.allclose(other, weight))


@pytest.mark.parametrize("n", [1, 2, 6, 31])
def test_plu_factors(n):
    weight = np.random.default_rng(n).normal(size=(n, n))
    permutation, lower, upper = _plu(weight)
    np.testing.assert_allclose(permutation @ lower @ upper, weight, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(permutation @ permutation.T, np.eye(n))
    np.testing.assert_array_equal(np.triu(lower), np.eye(n))
    np.testing.assert_array_equal(np.tril(upper, -1), np.zeros((n, n)))


def same_weight(backend, channels=5, seed=0):
    """A plu layer with random parameters, and a dense one that has the same W."""
    plu, dense = InvertibleConv1x1(channels, "plu"), InvertibleConv1x1(channels)
    store = testing.prepare(plu, backend, seed=seed)
    ParamStore(dense, plu.backend)
    dense.weight.value[...] = plu._weight()
    return plu, store, dense


def present(store):
    """Which elements of the flat buffer lie inside of their parameter's mask."""
    parts = [np.broadcast_to(store.masks.get(n, True), s.shape) for n, s in store.table.items()]
    return np.concatenate([part.ravel() for part in parts])


@each_backend
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 2, 5)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_both_forms_agree(direction, shape, backend):
    """In values, and in the gradient: that of W, pulled back to the factors by differences of W."""
    plu, store, dense = same_weight(backend)
    host = plu.backend.to_numpy
    rng = np.random.default_rng(1)
    x, g, dlog_det = (plu.backend.array(rng.normal(size=s)) for s in (shape, shape, shape[:1]))
    results = []
    for layer in (plu, dense):
        z, log_det, cache = getattr(layer, direction)(x)
        pull_back = layer.backward if direction == "forward" else layer.inverse_backward
        dx, _ = pull_back(cache, g.copy(), dlog_det)
        results.append([host(a) for a in (z, log_det, dx)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert np.abs(results[0][1]).max() > 0.1, "the log-det must not be near zero"

    dweight, step = host(dense.weight.grad), 1e-3
    values, grads = store.values.copy(), host(store.grads)
    for _ in range(5):
        v = rng.normal(size=values.shape) * present(store)

        def weight(h, v=v):
            store.values[...] = values + plu.backend.array(h * v)
            return host(plu._weight()).copy()

        first, second = ((weight(h) - weight(-h)) / (2 * h) for h in (step, 2 * step))
        expected = (dweight * (4 * first - second) / 3).sum()
        assert abs((grads * v).sum() - expected) < 1e-9 * np.abs(grads * v).sum()


@each_backend
@each_form
def test_one_factorisation_for_each_update_of_the_parameters(form, backend):
    layer = InvertibleConv1x1(4, form)
    store = testing.prepare(layer, backend)
    x = layer.backend.array(np.random.default_rng(0).normal(size=(3, 2, 2, 4)))
    kept = store.values  # a reference from before all updates
    per_update = 0

    def use():
        for _ in range(3):
            z, log_det, cache = layer.forward(x)
            found, _, inverse_cache = layer.inverse(z)
            layer.backward(cache, z.copy(), log_det)
            layer.inverse_backward(inverse_cache, z.copy(), log_det)
            assert abs(found - x).max() < 1e-12
        nonlocal per_update
        per_update += 1
        assert layer.factorizations == per_update

    use()
    use_again = layer.factorizations
    layer.forward(x)
    layer.inverse(x)
    assert layer.factorizations == use_again
    kept += layer.backend.array(0.01 * present(store))
    use()
    kept[-1] += 0.1  # one element, through the flat buffer
    use()
    store.load(store.to_numpy())  # the same numbers again: nothing to do
    layer.inverse(x)
    assert layer.factorizations == per_update
    arrays = store.to_numpy()
    name = "weight" if form == "dense" else "log_s"
    arrays[name] = arrays[name] * 1.5
    store.load(arrays)
    use()
    if form == "plu":
        kept[-1] += 0.1
        layer.backward(layer.forward(x)[2], x.copy(), x[:, 0, 0, 0])
        assert layer.factorizations == per_update  # its forward direction needs none


def flow_of(*layers, backend="numpy", dtype="float32"):
    return Flow(StandardNormal(4), Chain(layers), backend=backend, dtype=dtype)


@each_backend
@each_dtype
def test_a_singular_weight_is_named(dtype, backend):
    layer = InvertibleConv1x1(4)
    flow = flow_of(Diagonal(4), Inverse(Chain((layer,))), layer, backend=backend, dtype=dtype)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(6, 4)))
    before = flow.log_prob(x)
    weight = layer.weight.value.copy()
    for change in (0, np.finfo(dtype).eps):
        layer.weight.value[3] = layer.weight.value[1] * (1 + change)
        for call in (
            lambda: flow.log_prob(x), lambda: flow.nll_and_grad(x), lambda: flow.from_latent(x),
            lambda: flow.sample(3), lambda: flow.sample_and_log_prob(3),
        ):  # fmt: skip
            with pytest.raises(SingularMatrixError, match=r"layer 1.*InvertibleConv1x1.*4 x 4"):
                call()
    layer.weight.value[...] = weight
    np.testing.assert_array_equal(
        flow.backend.to_numpy(flow.log_prob(x)), flow.backend.to_numpy(before)
    )


@each_backend
def test_a_plu_weight_that_underflows_is_named_where_it_is_inverted(backend):
    layer = InvertibleConv1x1(4, "plu")
    flow = flow_of(layer, backend=backend)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(6, 4)))
    layer.log_s.value[2] = -50  # a condition of e^50, about 5e21
    assert np.isfinite(flow.nll_and_grad(x))  # the density needs no inverse
    with pytest.raises(SingularMatrixError, match=r"layer 0 \(InvertibleConv1x1\)"):
        flow.sample(3)
    with pytest.raises(SingularMatrixError, match=r"layer 0.* singular in float32"):
        flow.reverse_kl_and_grad(lambda x: (-(x * x).sum(axis=1) / 2, -x), 8, 0)


def test_another_layer_is_not_blamed_on_the_convolution():
    flow = flow_of(Diagonal(4), InvertibleConv1x1(4))
    flow.bijection.layers[0].log_scale.value[...] = 100
    with pytest.raises(NonFiniteError, match=r"layer 0 \(Diagonal\)") as caught:
        flow.log_prob(np.ones((2, 4), np.float32))
    assert not isinstance(caught.value, SingularMatrixError)


@each_form
def test_bad_configurations_and_input(form):
    with pytest.raises(ConfigurationError, match="choose one of dense, plu"):
        InvertibleConv1x1(3, "lu")
    with pytest.raises(ConfigurationError, match="expected 1 or more"):
        InvertibleConv1x1(0, form)
    layer = InvertibleConv1x1(3, form)
    ParamStore(layer, get_backend("numpy"))
    for call in (layer.forward, layer.inverse):
        with pytest.raises(ShapeError, match=r"expected \(batch, ..., 3\)"):
            call(np.ones((2, 6), np.float32))
    assert to_config(from_config(to_config(layer))) == to_config(layer)


@each_form
@each_dtype
def test_a_saved_flow_comes_back(form, dtype, tmp_path):
    flow = flow_of(ActNorm(4), InvertibleConv1x1(4, form, seed=9), dtype=dtype)
    testing.randomize(flow.params)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    flow.save(tmp_path / "flow.safetensors")
    again = Flow.load(tmp_path / "flow.safetensors", backend="numpy")
    np.testing.assert_array_equal(again.log_prob(x), flow.log_prob(x))
    np.testing.assert_array_equal(again.sample(5), flow.sample(5))


@each_backend
@each_form
@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_gradient_of_a_flow(memory, form, backend):
    flow = Flow(
        StandardNormal(12),
        Chain((ActNorm(3), InvertibleConv1x1(3, form), ActNorm(3),
               InvertibleConv1x1(3, form, seed=1), Reshape((2, 2, 3), (12,)))),
        shape=(2, 2, 3), backend=backend, dtype="float64",
    )  # fmt: skip
    testing.randomize(flow.params, scale=0.3)
    x = flow.backend.array(np.random.default_rng(0).normal(size=(8, 2, 2, 3)))
    testing.check_flow_gradients(flow, x, memory=memory)
