"""The image networks, and the kernels of the gated one: formulas, gradients, bad input."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS
from gpu import ON_GPU
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mutations import Edit, mutated

from npflow import testing
from npflow.bijections import Bijection, ImageCoupling
from npflow.elementwise import Affine
from npflow.errors import CheckError, ConfigurationError, ShapeError
from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads
from npflow.kernels.reference import gated
from npflow.networks import ConvNet, GatedResNet, ResNet
from npflow.networks.conv import Conv, WeightNormConv, ZeroConv
from npflow.params import Component, from_config, to_config

EPSILON = 1e-5


# The kernels


def elu(a):
    return a if a > 0 else np.exp(a) - 1


def test_reference_concat_elu_is_the_formula():
    x = np.random.default_rng(0).normal(size=(4, 3))
    x[0, 0] = 0
    y = reference.concat_elu_forward(x)
    assert y.shape == (4, 6)
    for i, j in np.ndindex(4, 3):
        assert y[i, j] == pytest.approx(elu(x[i, j]), rel=1e-13)
        assert y[i, 3 + j] == pytest.approx(elu(-x[i, j]), rel=1e-13)


def test_reference_gated_norm_is_the_formula():
    h, params, gain, shift = gated_arrays((4, 5), np.float64)[:4]
    y = reference.gated_norm_forward(h, params, gain, shift, EPSILON)
    for i in range(4):
        s = [h[i, j] + params[i, j] / (1 + np.exp(-params[i, 5 + j])) for j in range(5)]
        mean = sum(s) / 5
        deviation = np.sqrt(sum((a - mean) ** 2 for a in s) / 5 + EPSILON)
        for j in range(5):
            expected = gain[j] * (s[j] - mean) / deviation + shift[j]
            assert y[i, j] == pytest.approx(expected, rel=1e-12)


def by_differences(function, array, step=1e-5):
    """d function() / d array, element by element."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        center, sides = array[index], []
        for value in (center + step, center - step):
            array[index] = value
            sides.append(function())
        array[index] = center
        gradient[index] = (sides[0] - sides[1]) / (2 * step)
    return gradient


def test_reference_gradients_are_those_of_the_formulas():
    h, params, gain, shift, dy, dgain, dshift = gated_arrays((3, 4), np.float64)
    before = dgain.copy(), dshift.copy()
    dh, dparams = reference.gated_norm_backward(dy, h, params, gain, EPSILON, dgain, dshift)
    found = dh, dparams, dgain - before[0], dshift - before[1]

    def loss():
        return (dy * reference.gated_norm_forward(h, params, gain, shift, EPSILON)).sum()

    for array, gradient in zip((h, params, gain, shift), found, strict=True):
        np.testing.assert_allclose(gradient, by_differences(loss, array), rtol=1e-7, atol=1e-8)

    dy = np.random.default_rng(1).normal(size=params.shape)
    assert abs(h).min() > 1e-4
    expected = by_differences(lambda: (dy * reference.concat_elu_forward(h)).sum(), h)
    dx = reference.concat_elu_backward(dy, reference.concat_elu_forward(h))
    np.testing.assert_allclose(dx, expected, rtol=1e-7, atol=1e-8)


def test_the_slope_of_concat_elu_at_zero_is_one():
    y = reference.concat_elu_forward(np.zeros((1, 1)))
    for kernels in (reference, cpu):
        np.testing.assert_array_equal(kernels.concat_elu_backward(np.array([[3.0, 1.0]]), y), 2)


def gated_arrays(shape, dtype, seed=0, strided=False):
    """h, params, gain, shift, dy and gradients that are not zero."""
    rng = np.random.default_rng(seed)

    def make(*shape):
        wide = rng.normal(size=(*shape[:-1], (1 + strided) * shape[-1])).astype(dtype)
        return wide[..., :: 1 + strided]

    channels = shape[-1]
    vectors = make(channels), make(channels), make(*shape), rng.normal(size=(2, channels))
    gain, shift, dy, gradients = vectors
    dgain, dshift = gradients.astype(dtype)
    return make(*shape), make(*shape[:-1], 2 * channels), gain, shift, dy, dgain, dshift


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=ON_GPU)])
def kernels(request):
    """The kernels of one version, on NumPy arrays."""
    if request.param == "cpu":
        return cpu
    import cupy

    from npflow.kernels import gpu

    def on_numpy_arrays(name):
        def call(*args):
            on_device = [cupy.array(a, order="C") if isinstance(a, np.ndarray) else a for a in args]
            result = getattr(gpu, name)(*on_device)
            for host, device in zip(args, on_device, strict=True):
                if isinstance(host, np.ndarray):
                    host[...] = cupy.asnumpy(device)
            return tuple(map(cupy.asnumpy, result)) if name.endswith("m_backward") else (
                cupy.asnumpy(result)
            )  # fmt: skip

        return call

    names = "concat_elu_forward", "concat_elu_backward", "gated_norm_forward", "gated_norm_backward"
    return SimpleNamespace(**{name: on_numpy_arrays(name) for name in names})


def assert_close(found, expected, magnitude):
    """found is computed in its dtype; magnitude bounds the terms that its roundings are of."""
    error = np.abs(found - expected)
    assert np.all(error <= 16 * np.finfo(found.dtype).eps * magnitude), np.max(error / magnitude)


def check_concat_elu(kernels, shape, dtype, seed=0, strided=False):
    x, dy, *_ = gated_arrays(shape, dtype, seed, strided)
    y, exact = kernels.concat_elu_forward(x), reference.concat_elu_forward(x.astype(np.float64))
    assert y.dtype == dtype
    assert_close(y, exact, np.abs(exact))  # relatively exact near zero, too
    dx = kernels.concat_elu_backward(dy, y)
    dy64, y64 = dy.astype(np.float64), y.astype(np.float64)
    assert dx.dtype == dtype
    size = np.abs(dy64[..., : shape[-1]]) + np.abs(dy64[..., shape[-1] :])
    assert_close(dx, reference.concat_elu_backward(dy64, y64), size)


def check_gated_norm(kernels, shape, dtype, seed=0, strided=False):
    arrays = gated_arrays(shape, dtype, seed, strided)
    exact = [a.astype(np.float64) for a in arrays]
    h, params, gain, shift, dy, dgain, dshift = arrays
    h64, params64, gain64, shift64, dy64, dgain64, dshift64 = exact

    # The roundings of s are divided by sigma, which is small where the channels are nearly equal.
    c = shape[-1]
    _, s_hat, sigma = gated._normalize(h64, params64, EPSILON)
    size = np.max(np.abs(h64) + np.abs(params64[..., :c]), axis=-1, keepdims=True) / sigma

    y = kernels.gated_norm_forward(h, params, gain, shift, EPSILON)
    assert y.dtype == dtype
    expected = reference.gated_norm_forward(h64, params64, gain64, shift64, EPSILON)
    assert_close(y, expected, np.abs(gain64) * size + np.abs(shift64))

    terms = np.abs(dy64) * (np.abs(s_hat) + size), np.abs(dy64)
    pixels = tuple(range(len(shape) - 1))
    size_dgain, size_dshift = (
        before + term.sum(axis=pixels)
        for before, term in zip((np.abs(dgain64), np.abs(dshift64)), terms, strict=True)
    )
    dh, dparams = kernels.gated_norm_backward(dy, h, params, gain, EPSILON, dgain, dshift)
    dh64, dparams64 = reference.gated_norm_backward(
        dy64, h64, params64, gain64, EPSILON, dgain64, dshift64
    )
    assert dh.dtype == dparams.dtype == dtype
    size_dh = np.max(np.abs(gain64 * dy64), axis=-1, keepdims=True) * (1 + size) / sigma
    assert_close(dh, dh64, size_dh)
    dv, dg = np.split(dparams64, 2, axis=-1)
    assert_close(dparams[..., :c], dv, size_dh)
    assert_close(dparams[..., c:], dg, size_dh * np.abs(params64[..., :c]))
    assert_close(dgain, dgain64, size_dgain)
    assert_close(dshift, dshift64, size_dshift)


SHAPES = [(1, 1), (1, 7), (3, 1), (7, 33), (2, 3, 5, 48), (260, 16), (90, 96), (2, 4100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity_of_the_kernels(kernels, shape, dtype):
    check_concat_elu(kernels, shape, dtype)
    check_gated_norm(kernels, shape, dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 200),
    channels=st.integers(1, 70),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
    strided=st.booleans(),
)
def test_cpu_is_reference(rows, channels, dtype, seed, strided):
    check_concat_elu(cpu, (rows, channels), dtype, seed, strided)
    check_gated_norm(cpu, (rows, channels), dtype, seed, strided)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_comparison_rejects_a_small_error(dtype):
    def slightly_wrong(name, off):
        def call(*args):
            result = getattr(cpu, name)(*args)
            flat = (result[off] if isinstance(result, tuple) else result).reshape(-1)
            flat[np.abs(flat).argmax()] *= dtype(1 + 1000 * np.finfo(dtype).eps)
            return result

        return call

    for name, off in (
        ("concat_elu_forward", 0), ("concat_elu_backward", 0), ("gated_norm_forward", 0),
        ("gated_norm_backward", 0), ("gated_norm_backward", 1),
    ):  # fmt: skip
        wrong = SimpleNamespace(**vars(cpu) | {name: slightly_wrong(name, off)})
        check = check_concat_elu if name.startswith("concat") else check_gated_norm
        with pytest.raises(AssertionError):
            check(wrong, (20, 17), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_numbers_stay_finite_and_a_nan_stays_one(kernels, dtype):
    x = np.array([[1e4, -1e4, 90, -90, 1e-30, -0.0, np.nan]], dtype)
    y = kernels.concat_elu_forward(x)
    np.testing.assert_allclose(y, reference.concat_elu_forward(x), rtol=1e-6)
    params = np.array([[1, 1, 1, 1, -1e4, 1e4, 0, -90]], dtype)
    h, vector = np.zeros((1, 4), dtype), np.ones(4, dtype)
    y = kernels.gated_norm_forward(h, params, vector, vector, EPSILON)
    expected = reference.gated_norm_forward(h, params, vector, vector, EPSILON)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(dtype, monkeypatch):
    monkeypatch.setattr(threads, "THRESHOLD", 1)
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(threads, "THREADS", count)
        monkeypatch.setattr(threads, "_pool", None)
        h, params, gain, shift, dy, dgain, dshift = gated_arrays((9, 13, 11, 19), dtype)
        elu = cpu.concat_elu_forward(h)
        y = cpu.gated_norm_forward(h, params, gain, shift, EPSILON)
        gradients = cpu.gated_norm_backward(dy, h, params, gain, EPSILON, dgain, dshift)
        dx = cpu.concat_elu_backward(params, elu)
        results.append((elu, dx, y, *gradients, dgain, dshift))
        if threads._pool is not None:
            threads._pool.shutdown()
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


# The networks

NETWORKS: dict[str, Any] = {
    "convnet": lambda **options: ConvNet(2, 5, 3, **options),
    "convnet-tanh": lambda **options: ConvNet(2, 5, 3, "tanh", **options),
    "convnet-wide-patches": lambda **options: ConvNet(2, 4, 3, "elu", kernels=(5, 1, 5), **options),
    "resnet": lambda **options: ResNet(2, 4, 3, 2, **options),
    "gated-resnet": lambda **options: GatedResNet(2, 4, 3, 2, **options),
}
CONTEXTS = {"none": None, "vector": (2, 3), "image": (2, 3, 2, 3)}  # for images of (2, 3, 2, 2)
each_network = pytest.mark.parametrize("name", NETWORKS)
each_context = pytest.mark.parametrize("form", CONTEXTS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@dataclass(eq=False)
class AsLayer(Bijection):
    """A network or a convolution as check_gradients takes it: with a log-det, of zero."""

    network: Component

    def forward(self, x, context=None):
        y, cache = self.network.forward(x, context)
        return y, self.backend.xp.zeros(len(x)), cache

    def backward(self, cache, dz, dlog_det):
        return self.network.backward(cache, dz)


@dataclass(eq=False)
class OneConv(Component):
    """A convolution as a network."""

    conv: Component

    def forward(self, x, context=None):
        y = self.conv.forward(x)
        return y, (x, y)

    def backward(self, cache, dy):
        return self.conv.backward(dy, *cache), None


def before_kinks(network, x, context):
    """What relu and elu are applied to."""

    def linear(conv, x):
        activation, conv.activation = conv.activation, "identity"
        a = conv.forward(x)
        conv.activation = activation
        return a

    _, cache = network.forward(x, context)
    if isinstance(network, ConvNet):
        if network.activation == "tanh":
            return []
        return [linear(network.layers[i], cache.activations[i]) for i in range(2)]
    if isinstance(network, GatedResNet):
        return [*cache.h, *cache.inner]
    relu = [np.maximum(h, 0) for h in cache.h[:-1]]
    skipped = sum(conv.forward(h) for conv, h in zip(network.skips, cache.h, strict=True))
    return [*cache.h[:-1], *map(linear, network.inner, relu), skipped]


def smooth_arrays(network, shape, context_shape, seed=0):
    """x and context, for which nothing comes within 0.01 of a kink."""
    for attempt in range(200):
        rng = np.random.default_rng((seed, attempt))
        x = network.backend.array(rng.normal(size=shape))
        context = context_shape and network.backend.array(rng.normal(size=context_shape))
        if all(bool((abs(a) > 0.01).all()) for a in before_kinks(network, x, context)):
            return x, context
    raise AssertionError("no such arrays found")


def prepared(name, form="none", backend="reference", dtype="float64", **options):
    network = NETWORKS[name](context=3 if CONTEXTS[form] else 0, **options)
    layer = AsLayer(network)
    return layer, testing.prepare(layer, backend, dtype, seed=1)


@each_backend
@each_context
@each_network
def test_gradients(name, form, backend):
    """x, the context in both forms, and every parameter."""
    layer, _ = prepared(name, form, backend)
    x, context = smooth_arrays(layer.network, (2, 3, 2, 2), CONTEXTS[form])
    testing.check_gradients(layer, x, context, directions=("forward",), step=1e-4)


@each_backend
@pytest.mark.parametrize(
    "conv",
    [
        Conv(3, 2, 3, "tanh"), WeightNormConv(3, 2, 3, "tanh"), WeightNormConv(2, 4, 1, zero=True),
        ZeroConv(3, 2), ZeroConv(2, 4, 1),
    ],
)  # fmt: skip
def test_gradients_of_one_convolution(conv, backend):
    layer = AsLayer(OneConv(conv))
    testing.prepare(layer, backend)
    x = layer.backend.array(np.random.default_rng(0).normal(size=(2, 3, 4, conv.inputs)))
    testing.check_gradients(layer, x, directions=("forward",), tolerance=1e-8)


def test_the_direction_of_a_normalised_weight_keeps_its_length():
    """The gradient is at right angles to v; the weight has the length `gain` whatever v is."""
    conv = WeightNormConv(3, 2)
    testing.prepare(conv)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 5, 3))
    y = conv.forward(x)
    conv.backward(rng.normal(size=y.shape), x, y)
    along = (conv.v.grad * conv.v.value).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(along, 0, atol=1e-12 * abs(conv.v.grad).max())
    assert abs(conv.v.grad).min(axis=(0, 1, 2)).max() > 0
    conv.v.value[...] *= [3, 0.1]
    np.testing.assert_allclose(conv.forward(x), y, rtol=1e-12, atol=1e-14)


def test_weight_norm_starts_with_outputs_of_the_size_of_its_inputs():
    conv = WeightNormConv(16, 8)
    testing.prepare(conv, scale=0)
    y = conv.forward(np.random.default_rng(0).normal(size=(8, 14, 14, 16)))
    assert 0.8 < y[:, 1:-1, 1:-1].std() < 1.2


def convolve(x, weight, bias):
    return reference.conv_forward(x, weight, bias, "identity")


def normalised(conv):
    v = conv.v.value
    return conv.gain.value * v / np.sqrt((v**2).sum(axis=(0, 1, 2))), conv.bias.value


def plain(conv):
    return conv.weight.value, conv.bias.value


def joined(x, context):
    image = np.zeros((*x.shape[:3], context.shape[-1]))
    image += context if context.ndim == 4 else context[:, None, None]
    return np.concatenate([x, image], axis=-1)


def by_formula(network, inputs):
    """y as the papers write it."""
    if isinstance(network, ConvNet):
        act = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh}[network.activation]
        first, second, last = network.layers
        h = act(convolve(act(convolve(inputs, *plain(first))), *plain(second)))
        return convolve(h, *plain(last)) * np.exp(3 * last.log_gain.value)
    if isinstance(network, ResNet):
        h = convolve(inputs, *normalised(network.first))
        skipped = convolve(h, *normalised(network.skips[0]))
        for i in range(network.blocks):
            inner = convolve(np.maximum(h, 0), *normalised(network.inner[i]))
            h = h + convolve(np.maximum(inner, 0), *normalised(network.outer[i]))
            skipped = skipped + convolve(h, *normalised(network.skips[i + 1]))
        return convolve(np.maximum(skipped, 0), *normalised(network.last))

    def concat_elu(a):
        return np.concatenate(
            [np.where(b > 0, b, np.exp(np.minimum(b, 0)) - 1) for b in (a, -a)], 3
        )

    h = convolve(inputs, *plain(network.first))
    for i in range(network.blocks):
        inner = convolve(concat_elu(h), *plain(network.inner[i]))
        params = convolve(concat_elu(inner), *plain(network.outer[i]))
        value, gate = np.split(params, 2, axis=-1)
        s = h + value / (1 + np.exp(-gate))
        deviation = np.sqrt(s.var(axis=-1, keepdims=True) + EPSILON)
        s_hat = (s - s.mean(axis=-1, keepdims=True)) / deviation
        h = network.gains[i].value * s_hat + network.shifts[i].value
    return convolve(concat_elu(h), *plain(network.last))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("form", ["vector", "image"])
@pytest.mark.parametrize("name", ["convnet", "convnet-tanh", "resnet", "gated-resnet"])
def test_forward_is_the_formula(name, form, backend):
    """The context, too, ends in zeros beyond the border of the image."""
    layer, _ = prepared(name, form, backend)
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 3, 2, 2)), rng.normal(size=CONTEXTS[form])
    y, _ = layer.network.forward(x, context)
    np.testing.assert_allclose(
        y, by_formula(layer.network, joined(x, context)), rtol=1e-12, atol=1e-12
    )


@each_network
def test_a_vector_is_the_image_with_the_vector_in_every_pixel(name):
    layer, store = prepared(name, "vector", "numpy")
    network, rng = layer.network, np.random.default_rng(0)
    x, vector, dy = (rng.normal(size=s) for s in ((2, 3, 2, 2), (2, 3), (2, 3, 2, 3)))
    image = np.broadcast_to(vector[:, None, None], (2, 3, 2, 3)).copy()
    results = []
    for context in (vector, image):
        store.zero_grads()
        y, cache = network.forward(x, context)
        dx, dcontext = network.backward(cache, dy.copy())
        assert dcontext.shape == context.shape
        dvector = dcontext if context.ndim == 2 else dcontext.sum(axis=(1, 2))
        results.append((y, dx, dvector, store.grads.copy()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@each_backend
@each_context
@each_network
def test_a_new_network_is_zero_and_learns(name, form, backend):
    layer = AsLayer(NETWORKS[name](context=3 if CONTEXTS[form] else 0))
    store = testing.prepare(layer, backend, scale=0)
    rng, array = np.random.default_rng(0), layer.backend.array
    x, dy = array(rng.normal(size=(2, 3, 2, 2))), array(rng.normal(size=(2, 3, 2, 3)))
    context = None if CONTEXTS[form] is None else array(rng.normal(size=CONTEXTS[form]))
    y, cache = layer.network.forward(x, context)
    assert not y.any()
    store.zero_grads()
    layer.network.backward(cache, dy.copy())
    assert store.grads.any()
    store.values -= 0.1 * store.grads
    y, _ = layer.network.forward(x, context)
    assert float((y * dy).sum()) < 0


@each_network
def test_no_zeros_without_zero_last(name):
    layer = AsLayer(NETWORKS[name](zero_last=False))
    testing.prepare(layer, scale=0)
    assert layer.network.forward(np.ones((1, 3, 2, 2)))[0].all()


@each_context
@each_network
def test_float32_agrees_with_the_float64_reference(name, form):
    layer, store = prepared(name, form, "numpy", "float32")
    exact, exact_store = prepared(name, form)
    exact_store.load({k: v.astype(np.float64) for k, v in store.to_numpy().items()})
    x, context = smooth_arrays(exact.network, (2, 3, 2, 2), CONTEXTS[form])
    x, dy = x.astype(np.float32), np.random.default_rng(9).normal(size=(2, 3, 2, 3))
    results = []
    for network, dtype in ((layer.network, np.float32), (exact.network, np.float64)):
        arrays = [None if a is None else a.astype(dtype) for a in (x, context, dy)]
        y, cache = network.forward(*arrays[:2])
        dx, dcontext = network.backward(cache, arrays[2])
        assert y.dtype == dx.dtype == dtype
        results.append([y, dx, *([] if dcontext is None else [dcontext])])
    results[0].append(store.grads)
    results[1].append(exact_store.grads)
    for found, expected in zip(*results, strict=True):
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@each_network
def test_rows_do_not_interact_and_input_may_be_strided(name):
    layer, _ = prepared(name, "vector", "numpy")
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(5, 4, 6, 2)), rng.normal(size=(5, 3))
    y, _ = layer.network.forward(x, context)
    alone, _ = layer.network.forward(x[2:3], context[2:3])
    np.testing.assert_allclose(alone, y[2:3], rtol=1e-13, atol=1e-13)
    transposed = np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    y_strided, _ = layer.network.forward(transposed, np.asfortranarray(context))
    np.testing.assert_array_equal(y_strided, y)


@each_network
def test_in_a_coupling(name):
    """Round trip, log-det and the configuration's way through JSON."""
    network = {"convnet": ConvNet(2, 4, 4, "tanh"), "resnet": ResNet(2, 4, 4, 1)}.get(
        name, GatedResNet(2, 4, 4, 1)
    )
    layer = ImageCoupling((2, 2, 4), (0, 2), Affine(2), network)
    testing.prepare(layer)
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 4))
    testing.check_inverse(layer, x)
    again = from_config(to_config(layer))
    testing.prepare(again)
    np.testing.assert_array_equal(again.forward(x)[0], layer.forward(x)[0])


# Errors planted in the gradients must be seen

BACKWARD: dict[str, list[Edit]] = {
    "convnet-tanh": [
        Edit(reference, "scaled_weight_backward", " + dscaled_bias * (gain * bias)", ""),
        Edit(reference, "scaled_weight_backward", "dlog_gain += factor * ", "dlog_gain += "),
        Edit(reference, "scaled_weight_backward", "+= gain * dscaled\n", "+= dscaled\n"),
        Edit(reference, "scaled_weight_backward", "+= gain * dscaled_bias", "+= dscaled_bias"),
        Edit(ZeroConv, "backward", "dy, x, y, weight", "dy, x, y, self.weight.value"),
        Edit(ConvNet, "backward", "cache.context_axes", "4"),
    ],
    "resnet": [
        Edit(reference, "normalized_weight_backward", " - direction * along", ""),
        Edit(reference, "normalized_weight_backward", "gain / norm", "gain"),
        Edit(reference, "normalized_weight_backward", "gain / norm", "1 / norm"),
        Edit(reference, "normalized_weight_backward", "dgain += ", "dgain -= "),
        Edit(reference, "normalized_weight_backward", "dv += ", "dv[...] = "),
        Edit(ResNet, "backward", " * (relu > 0)", ""),
        Edit(ResNet, "backward", " * (last > 0)", ""),
        Edit(ResNet, "backward", "relu = xp.maximum(h[i], 0)", "relu = h[i]"),
        Edit(ResNet, "backward", "dh += self.skips", "self.skips"),
        Edit(ResNet, "backward", "dh += self.inner", "dh = self.inner"),
    ],
    "gated-resnet": [
        Edit(GatedResNet, "backward", "dh += through", "dh = through"),
        Edit(reference, "concat_elu_backward", "dp - dn", "dp + dn"),
        Edit(reference, "concat_elu_backward", "y + 1", "y"),
        Edit(reference, "gated_norm_backward", "dnormalized - mean", "dnormalized"),
        Edit(reference, "gated_norm_backward", " - normalized * projection", ""),
        Edit(reference, "gated_norm_backward", "projection) / sigma", "projection)"),
        Edit(reference, "gated_norm_backward", "gate * (1 - gate)", "gate"),
        Edit(reference, "gated_norm_backward", "[ds * gate", "[ds"),
        Edit(reference, "gated_norm_backward", "dgain += (", "dgain -= ("),
        Edit(reference, "gated_norm_backward", "dshift += dy", "dshift -= dy"),
        Edit(reference, "gated_norm_backward", "= gain * dy", "= dy"),
    ],
}


@pytest.mark.parametrize("name", BACKWARD)
def test_planted_errors_are_caught(name, monkeypatch):
    layer, _ = prepared(name, "vector")
    x, context = smooth_arrays(layer.network, (2, 3, 2, 2), CONTEXTS["vector"])

    def check():
        testing.check_gradients(layer, x, context, directions=("forward",), step=1e-4)

    check()
    for edit in BACKWARD[name]:
        with monkeypatch.context() as patch:
            patch.setattr(edit.owner, edit.function, mutated(edit))
            with pytest.raises(CheckError):
                check()


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(2, 4, 3, "gelu"), "unknown activation 'gelu'"),
        (lambda: ConvNet(2, 4, 3, "identity"), "unknown activation 'identity'"),
        (lambda: ConvNet(2, 4, 3, kernels=(2, 1, 2)), "kernel of 2"),
        (lambda: ConvNet(2, 0, 3), "0 output channels"),
        (lambda: ResNet(0, 4, 3, 1), "0 input"),
        (lambda: ResNet(2, 4, 3, 0), "blocks is 0"),
        (lambda: GatedResNet(2, 4, 0, 1), "0 output"),
        (lambda: GatedResNet(2, 4, 3, 0), "blocks is 0"),
        (lambda: Conv(2, 3, 3, "relu6"), "unknown activation 'relu6'"),
    ],
)
def test_bad_configurations_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@each_network
def test_a_context_that_does_not_fit_is_refused(name):
    layer, _ = prepared(name, "vector", "numpy")
    x = np.zeros((2, 3, 2, 2))
    for context in (None, np.zeros((2, 4)), np.zeros((1, 3)), np.zeros((2, 2, 3, 3))):
        with pytest.raises(ShapeError, match="context"):
            layer.network.forward(x, context)
