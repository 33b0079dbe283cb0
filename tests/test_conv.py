"""The convolution: reference against loops and finite differences, the others against reference."""

from types import SimpleNamespace

import numpy as np
import pytest
from gpu import ON_GPU
from hypothesis import given, settings
from hypothesis import strategies as st

from npflow.kernels import cpu, reference
from npflow.kernels.cpu import threads

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "elu")
# batch, height, width, n_in, n_out: one pixel, one row of pixels, images smaller than the patch,
# thin inputs, thin outputs and neither, broken panels, several blocks and groups of images.
SHAPES = [
    (1, 1, 1, 1, 1), (2, 5, 3, 3, 7), (3, 4, 7, 7, 3), (2, 3, 3, 1, 40), (2, 3, 2, 40, 1),
    (1, 9, 6, 33, 34), (5, 1, 4, 4, 4), (2, 6, 1, 5, 2), (3, 7, 5, 50, 12), (2, 5, 5, 12, 70),
    (67, 3, 2, 3, 2), (41, 14, 13, 2, 5), (41, 14, 13, 5, 2),
]  # fmt: skip
# For k = 5: so many weights that the sum over the images is kept in two parts.
MANY_WEIGHTS = (5, 13, 11, 140, 155)


def layer(batch, height, width, n_in, n_out, k, dtype=np.float64, seed=0):
    """x, weight, bias, dy and gradients that are not zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, n_in))
    weight, dweight = rng.normal(size=(2, k, k, n_in, n_out)) / (k * np.sqrt(n_in))
    bias, dbias = rng.normal(size=(2, n_out))
    dy = rng.normal(size=(batch, height, width, n_out))
    return tuple(a.astype(dtype) for a in (x, weight, bias, dy, dweight, dbias))


def convolve(x, weight, bias):
    """The definition, in loops over pixels and over the neighbours that are in the image."""
    batch, height, width, _ = x.shape
    k, _, _, n_out = weight.shape
    a = np.zeros((batch, height, width, n_out))
    for b, i, j in np.ndindex(batch, height, width):
        a[b, i, j] = bias
        for u, v in np.ndindex(k, k):
            row, column = i + u - k // 2, j + v - k // 2
            if 0 <= row < height and 0 <= column < width:
                a[b, i, j] += x[b, row, column] @ weight[u, v]
    return a


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_reference_forward_is_the_definition(k, activation):
    x, weight, bias, *_ = layer(2, 4, 3, 3, 2, k)
    # The activation is that of a linear layer: of one that hands its input on.
    a = convolve(x, weight, bias)
    expected = reference.linear_forward(a, np.eye(2), np.zeros(2), activation)
    y = reference.conv_forward(x, weight, bias, activation)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_reference_backward_is_the_gradient(k, activation):
    x, weight, bias, dy, dweight, dbias = layer(2, 3, 2, 2, 3, k)
    y = reference.conv_forward(x, weight, bias, activation)
    before = dweight.copy(), dbias.copy()
    dx = reference.conv_backward(dy.copy(), x, y, weight, activation, dweight, dbias)
    gradients = (dx, dweight - before[0], dbias - before[1])
    for array, gradient in zip((x, weight, bias), gradients, strict=True):
        for index in np.ndindex(array.shape):
            center, step, sides = array[index], 1e-6, []
            for value in (center + step, center - step):
                array[index] = value
                sides.append(np.sum(dy * reference.conv_forward(x, weight, bias, activation)))
            array[index] = center
            difference = (sides[0] - sides[1]) / (2 * step)
            assert gradient[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


def gpu_on_numpy_arrays():
    import cupy

    from npflow.kernels.gpu import conv

    def conv_forward(*args):
        return cupy.asnumpy(conv.conv_forward(*map(cupy.asarray, args[:3]), args[3]))

    def conv_backward(dy, x, y, weight, activation, *gradients):
        on_device = [cupy.asarray(a) for a in gradients]
        arrays = map(cupy.asarray, (dy, x, y, weight))
        dx = conv.conv_backward(*arrays, activation, *on_device)
        for host, device in zip(gradients, on_device, strict=True):
            host[...] = cupy.asnumpy(device)
        return cupy.asnumpy(dx)

    return SimpleNamespace(conv_forward=conv_forward, conv_backward=conv_backward)


@pytest.fixture(params=["reference", "cpu", pytest.param("gpu", marks=ON_GPU)])
def kernels(request):
    """The kernels of one version, on NumPy arrays."""
    match request.param:
        case "reference":
            return reference
        case "cpu":
            return cpu
    return gpu_on_numpy_arrays()


@pytest.mark.parametrize("shape", [(3, 4, 5, 2, 6), (3, 4, 5, 6, 2), (2, 5, 3, 4, 4)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_gradients_are_the_adjoints(kernels, k, shape):
    """<conv(x, W), dy> = <x, dx> = <W, dW>: linear in x and in W."""
    x, weight, _, dy, *_ = layer(*shape, k)
    dweight, dbias = np.zeros_like(weight), np.zeros(shape[-1])
    y = kernels.conv_forward(x, weight, np.zeros_like(dbias), "identity")
    inner = np.sum(y * dy)
    expected_dbias = dy.sum((0, 1, 2))
    dx = kernels.conv_backward(dy, x, y, weight, "identity", dweight, dbias)
    assert np.sum(x * dx) == pytest.approx(inner, rel=1e-12)
    assert np.sum(weight * dweight) == pytest.approx(inner, rel=1e-12)
    np.testing.assert_allclose(dbias, expected_dbias, rtol=1e-12, atol=1e-13)


def assert_sums_close(given, expected, magnitude):
    """given is a sum computed in its dtype; magnitude is the sum of the terms' absolute values."""
    error = np.abs(given - expected)
    assert np.all(error <= 8 * np.finfo(given.dtype).eps * magnitude), np.max(error)


def check_parity(kernels, shape, k, dtype, activation="identity", seed=1):
    x, weight, bias, dy, dweight, dbias = layer(*shape, k, dtype, seed)
    exact = [a.astype(np.float64) for a in (x, weight, bias, dy, dweight, dbias)]
    x64, weight64, bias64, dy64, dweight64, dbias64 = exact
    abs_x, abs_weight, abs_bias, abs_dy, size_dweight, size_dbias = map(np.abs, exact)

    y = kernels.conv_forward(x, weight, bias, activation)
    assert y.dtype == dtype
    size = reference.conv_forward(abs_x, abs_weight, abs_bias, "identity")
    assert_sums_close(y, reference.conv_forward(x64, weight64, bias64, activation), size)

    y64 = y.astype(np.float64)
    size_dx = reference.conv_backward(
        abs_dy, abs_x, y64, abs_weight, "identity", size_dweight, size_dbias
    )
    dx = kernels.conv_backward(dy, x, y, weight, activation, dweight, dbias)
    dx64 = reference.conv_backward(dy64, x64, y64, weight64, activation, dweight64, dbias64)
    assert dx.dtype == dtype
    assert_sums_close(dx, dx64, size_dx)
    assert_sums_close(dweight, dweight64, size_dweight)
    assert_sums_close(dbias, dbias64, size_dbias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity_at_the_edges(kernels, shape, dtype):
    for k in (1, 3, 5):
        activation = ACTIVATIONS[(k + sum(shape)) % len(ACTIVATIONS)]
        check_parity(kernels, shape, k, dtype, activation)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity_with_many_weights(kernels, dtype):
    check_parity(kernels, MANY_WEIGHTS, 5, dtype, "relu")


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 30),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    n_in=st.integers(1, 60),
    n_out=st.integers(1, 60),
    k=st.sampled_from([1, 3, 5]),
    dtype=st.sampled_from([np.float32, np.float64]),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 1000),
)
def test_cpu_is_reference(batch, height, width, n_in, n_out, k, dtype, activation, seed):
    check_parity(cpu, (batch, height, width, n_in, n_out), k, dtype, activation, seed)


def turned(weight):
    return weight[::-1, ::-1]


def wrong_forward(mistake):
    """conv_forward with a planted error."""

    def forward(x, weight, bias, activation):
        match mistake:
            case "weight turned":
                weight = turned(weight)
            case "weight transposed":
                weight = weight.swapaxes(0, 1)
            case "edges repeated":
                return with_borders(x, weight, bias, activation, "edge")
            case "image wrapped around":
                return with_borders(x, weight, bias, activation, "wrap")
            case "one pixel off":
                x = np.roll(np.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]), 1, axis=1)[:, :-1]
        return reference.conv_forward(x, weight, bias, activation)

    return forward


def with_borders(x, weight, bias, activation, mode):
    """conv_forward of an image that does not go on with zeros."""
    r = len(weight) // 2
    x = np.pad(x, [(0, 0), (r, r), (r, r), (0, 0)], mode)
    return reference.conv_forward(x, weight, bias, activation)[:, r:-r, r:-r]


def wrong_backward(mistake):
    """conv_backward with a planted error."""

    def backward(dy, x, y, weight, activation, dweight, dbias):
        before, dw, db = dweight.copy(), np.zeros_like(dweight), np.zeros_like(dbias)
        dx = reference.conv_backward(dy, x, y, weight, activation, dw, db)
        match mistake:
            case "dx without the turn":
                dx = reference.conv_backward(dy, x, y, turned(weight), activation, dw * 0, db * 0)
            case "dx of one corner":
                dx[0, 0, 0] = 0
            case "dweight turned":
                dw = turned(dw)
            case "dweight overwritten":
                dw -= before
            case "dbias of one image":
                db -= dy[0].sum((0, 1))
        dweight += dw
        dbias += db
        return dx

    return backward


@pytest.mark.parametrize("shape", [(2, 5, 4, 3, 7), (2, 5, 4, 7, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_comparison_rejects_planted_errors(shape, dtype):
    right = SimpleNamespace(conv_forward=wrong_forward(None), conv_backward=wrong_backward(None))
    check_parity(right, shape, 3, dtype)
    for mistake in (
        "weight turned", "weight transposed", "edges repeated", "image wrapped around",
        "one pixel off",
    ):  # fmt: skip
        kernels = SimpleNamespace(
            conv_forward=wrong_forward(mistake), conv_backward=right.conv_backward
        )
        with pytest.raises(AssertionError):
            check_parity(kernels, shape, 3, dtype)
    for mistake in (
        "dx without the turn", "dx of one corner", "dweight turned", "dweight overwritten",
        "dbias of one image",
    ):  # fmt: skip
        kernels = SimpleNamespace(
            conv_forward=right.conv_forward, conv_backward=wrong_backward(mistake)
        )
        with pytest.raises(AssertionError):
            check_parity(kernels, shape, 3, dtype)


@pytest.mark.parametrize("shape", [(2, 6, 5, 3, 7), (2, 6, 5, 7, 3)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_pixel_reaches_its_neighbours_alone(kernels, k, shape):
    """A NaN stays visible there, and shows nowhere else: borders included."""
    x, weight, bias, dy, dweight, dbias = layer(*shape, k)
    y = kernels.conv_forward(x, weight, bias, "relu")
    for i, j in ((0, 0), (2, 1), (5, 4)):
        rows = slice(max(0, i - k // 2), i + k // 2 + 1)
        columns = slice(max(0, j - k // 2), j + k // 2 + 1)
        expected = np.zeros(shape[:3], bool)
        expected[1, rows, columns] = True
        broken_x, broken_dy = x.copy(), dy.copy()
        broken_x[1, i, j, 0] = broken_dy[1, i, j, 0] = np.nan
        broken = kernels.conv_forward(broken_x, weight, bias, "relu")
        np.testing.assert_array_equal(np.isnan(broken).all(-1), expected)
        np.testing.assert_array_equal(np.isnan(broken).any(-1), expected)
        dx = kernels.conv_backward(
            broken_dy, x, y, weight, "leaky_relu", dweight.copy(), dbias.copy()
        )
        np.testing.assert_array_equal(np.isnan(dx).all(-1), expected)
        np.testing.assert_array_equal(np.isnan(dx).any(-1), expected)


@pytest.mark.parametrize("shape", [(41, 14, 13, 2, 5), (41, 14, 13, 5, 2), (70, 4, 3, 33, 40)])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(shape, k, dtype, monkeypatch):
    monkeypatch.setattr(threads, "THRESHOLD", 1)
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(threads, "THREADS", count)
        monkeypatch.setattr(threads, "_pool", None)
        x, weight, bias, dy, dweight, dbias = layer(*shape, k, dtype)
        y = cpu.conv_forward(x, weight, bias, "tanh")
        dx = cpu.conv_backward(dy, x, y, weight, "tanh", dweight, dbias)
        results.append((y, dx, dweight, dbias))
        if threads._pool is not None:
            threads._pool.shutdown()
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2, 6), (3, 4, 5, 6, 2)])
def test_arrays_in_any_order_of_memory(shape):
    """x and dy may lie in memory in any way; a weight that does not fit is refused."""
    x, weight, bias, dy, dweight, dbias = layer(*shape, 3)
    y = cpu.conv_forward(x, weight, bias, "relu")
    gradients = dweight.copy(), dbias.copy()
    dx = cpu.conv_backward(dy.copy(), x, y, weight, "relu", *gradients)

    def gaps(array):
        return np.repeat(np.repeat(array, 2, axis=3), 3, axis=1)[:, ::3, :, ::2]

    for other in (gaps, np.asfortranarray, lambda array: array[::-1].copy()[::-1]):
        np.testing.assert_array_equal(cpu.conv_forward(other(x), weight, bias, "relu"), y)
        for which in ((other, np.copy), (np.copy, other)):
            given_dy, given_x = (change(a) for change, a in zip(which, (dy, x), strict=True))
            given = dweight.copy(), dbias.copy()
            given_dx = cpu.conv_backward(given_dy, given_x, y, weight, "relu", *given)
            for one, two in zip((dx, *gradients), (given_dx, *given), strict=True):
                np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="C-contiguous"):
        cpu.conv_forward(x, np.asfortranarray(weight), bias, "relu")


def test_the_output_of_an_identity_layer_is_not_read_by_backward(kernels):
    x, weight, bias, dy, dweight, dbias = layer(2, 3, 4, 2, 5, 3)
    y = kernels.conv_forward(x, weight, bias, "identity")
    one, other = (dweight.copy(), dbias.copy()), (dweight.copy(), dbias.copy())
    dx = kernels.conv_backward(dy.copy(), x, y, weight, "identity", *one)
    unread = np.full_like(y, np.nan)
    given = kernels.conv_backward(dy.copy(), x, unread, weight, "identity", *other)
    for a, b in zip((dx, *one), (given, *other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernels", [reference, cpu])
def test_bad_input_is_refused(kernels):
    x, weight, bias, *_ = layer(2, 3, 4, 2, 5, 3)
    with pytest.raises(ValueError, match="softplus"):
        kernels.conv_forward(x, weight, bias, "softplus")
    with pytest.raises(ValueError):
        kernels.conv_forward(x[..., :1], weight, bias, "relu")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 5), (2, 3, 4, 5, 2)])
def test_an_empty_batch_gives_empty_arrays(kernels, k, shape):
    x, weight, bias, dy, dweight, dbias = layer(*shape, k)
    before = dweight.copy(), dbias.copy()
    y = kernels.conv_forward(x[:0], weight, bias, "relu")
    dx = kernels.conv_backward(dy[:0], x[:0], y, weight, "relu", dweight, dbias)
    assert y.shape == dy[:0].shape and dx.shape == x[:0].shape
    np.testing.assert_array_equal(dweight, before[0])
    np.testing.assert_array_equal(dbias, before[1])
