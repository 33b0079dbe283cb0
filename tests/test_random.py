"""Philox against its published vectors, the versions against each other, and the statistics."""

from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from gpu import ON_GPU

from npflow.backend import get_backend
from npflow.errors import ConfigurationError, DtypeError, ShapeError
from npflow.kernels.cpu import random as cpu
from npflow.kernels.reference import random as reference
from npflow.random import Stream, normal, permutation, uniform

DTYPES = [np.float32, np.float64]
SIZES = [0, 1, 2, 3, 4, 5, 7, 1001]
DRAWS = ["uniform", "normal"]
SEED = 2**64 - 5  # both words of the key are in use

# Random123, kat_vectors, philox4x32 10: counter, key, words.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=ON_GPU)])
def kernels(request):
    """The kernels of one version, answering in NumPy arrays."""
    if request.param == "cpu":
        return cpu
    import cupy

    from npflow.kernels.gpu import random as gpu

    return SimpleNamespace(
        uniform=lambda *args: cupy.asnumpy(gpu.uniform(*args)),
        normal=lambda *args: cupy.asnumpy(gpu.normal(*args)),
    )


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert tuple(reference.philox4x32(np.array(counter, np.uint32), key)) == words
    block = np.uint64(counter[0] + 2**32 * counter[1])
    step, stream = np.uint32(counter[2]), np.uint32(counter[3])
    assert cpu._philox4x32(block, np.uint32(key[0]), np.uint32(key[1]), step, stream) == words


def test_layout_of_the_counter_and_the_words():
    """Element i comes from block i // 4, words in order; step is counter word 2, stream word 3."""
    counter = np.array([[0, 1], [0, 0], [9, 9], [3, 3]], np.uint32)
    words = reference.philox4x32(counter, (SEED % 2**32, SEED // 2**32)).T.ravel().tolist()
    u32 = [(w >> 8) / 2**24 for w in words]
    u64 = [((a >> 5) * 2**26 + (b >> 6)) / 2**53 for a, b in zip(*[iter(words)] * 2, strict=True)]
    assert reference.uniform(8, SEED, 3, 9, np.float32).tolist() == u32
    assert reference.uniform(4, SEED, 3, 9, np.float64).tolist() == u64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_uniform_is_bit_identical(kernels, size, dtype):
    expected = reference.uniform(size, SEED, 3, 2**32 - 1, dtype)
    actual = kernels.uniform(size, SEED, 3, 2**32 - 1, dtype)
    assert actual.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_normal_agrees_to_rounding(kernels, size, dtype):
    """Radius (below 9), sine and cosine are each off by a few units in the last place at most."""
    expected = reference.normal(size, SEED, 3, 9, dtype)
    actual = kernels.normal(size, SEED, 3, 9, dtype)
    assert actual.dtype == expected.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_is_box_muller_of_the_uniforms(dtype):
    u = reference.uniform(1000, SEED, 3, 9, np.dtype(dtype)).astype(np.float64)
    n = reference.normal(1000, SEED, 3, 9, dtype).astype(np.float64)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(n[0::2] ** 2 + n[1::2] ** 2, -2 * np.log1p(-u[0::2]), rtol=8 * eps)
    angle = np.arctan2(n[1::2], n[0::2]) / (2 * np.pi) % 1
    np.testing.assert_allclose(angle, u[1::2], atol=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", DRAWS)
def test_shorter_draw_is_the_beginning_of_a_longer_one(kernels, draw, dtype):
    longer = getattr(kernels, draw)(1001, SEED, 3, 9, dtype)
    for size in SIZES:
        shorter = getattr(kernels, draw)(size, SEED, 3, 9, dtype)
        np.testing.assert_array_equal(shorter, longer[:size])


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_over_threads_does_not_matter(dtype):
    core, per_block = (cpu._uniform32, 4) if dtype == np.float32 else (cpu._uniform64, 2)
    words = [np.uint32(word) for word in (SEED % 2**32, SEED // 2**32, 3, 9)]
    out = np.full(1000, np.nan, dtype)
    pairs = out.size // 2
    for start, stop in ((0, 1), (1, 48), (48, 1000 // per_block)):
        core(start, stop, *words, out)
    np.testing.assert_array_equal(out, cpu.uniform(1000, SEED, 3, 9, dtype))
    for start, stop in ((0, 1), (1, 48), (48, pairs)):
        cpu._box_muller(start, stop, out)
    np.testing.assert_array_equal(out, cpu.normal(1000, SEED, 3, 9, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_moments(dtype):
    """Mean, variance and kurtosis of n numbers within four standard errors at a fixed seed."""
    n = 200_000
    u = cpu.uniform(n, 1, Stream.DEQUANTIZE, 0, dtype).astype(np.float64)
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    centred = u - 0.5
    assert abs(centred.mean()) < 4 * sqrt(1 / 12 / n)
    assert abs((centred**2).mean() - 1 / 12) < 4 * sqrt(1 / 180 / n)  # 1/80 - 1/144
    assert abs((centred**4).mean() - 1 / 80) < 4 * sqrt((1 / 2304 - 1 / 6400) / n)
    counts = np.bincount((u * 64).astype(int), minlength=64)
    chi_squared = ((counts - n / 64) ** 2).sum() / (n / 64)
    assert abs(chi_squared - 63) < 4 * sqrt(2 * 63)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_moments(dtype):
    """E x^k = 0, 1, 0, 3 for k = 1..4, and E x y = 0 in a pair, within four standard errors."""
    n = 200_000
    x = cpu.normal(n, 1, Stream.SAMPLE, 0, dtype).astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * sqrt(variance / n)
    assert abs((x[0::2] * x[1::2]).mean()) < 4 * sqrt(2 / n)
    assert abs((x[:-1] * x[1:]).mean()) < 4 * sqrt(1 / n)
    assert abs((np.abs(x) < 1).mean() - 0.6826895) < 4 * sqrt(0.6826895 * 0.3173105 / n)


@pytest.mark.parametrize("draw", DRAWS)
def test_different_streams_are_uncorrelated(draw):
    n = 100_000
    names = [(1, 0, 0), (2, 0, 0), (1 + 2**32, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1), (0, 0, 1)]
    x = np.stack([getattr(cpu, draw)(n, *name, np.float64) for name in names])
    correlation = np.corrcoef(x) - np.eye(len(names))
    assert np.abs(correlation).max() < 4.5 / sqrt(n)  # 21 pairs at once


@pytest.mark.parametrize("name", ["reference", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_draws_have_the_shape_and_dtype_of_the_backend(name, dtype):
    backend = get_backend(name, dtype)
    for draw, kernel in ((uniform, reference.uniform), (normal, reference.normal)):
        x = draw(backend, (3, 5, 7), 11, Stream.SAMPLE, 2)
        expected = kernel(105, 11, Stream.SAMPLE, 2, dtype).reshape(3, 5, 7)
        assert x.shape == (3, 5, 7) and x.dtype == dtype and x.flags.c_contiguous
        np.testing.assert_allclose(x, expected, rtol=4 * np.finfo(dtype).eps)
        assert draw(backend, (0, 4), 11, Stream.SAMPLE, 2).shape == (0, 4)
        assert draw(backend, (4,), 11, Stream.SAMPLE, 2, np.float64).dtype == np.float64


def test_permutation():
    order = permutation(1001, 5, Stream.ORDER, 3)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1001))
    np.testing.assert_array_equal(order, permutation(1001, 5, Stream.ORDER, 3))
    for other in (permutation(1001, 5, Stream.ORDER, 4), permutation(1001, 6, Stream.ORDER, 3)):
        assert (order == other).sum() < 10  # one fixed point is expected
    assert permutation(0, 5, Stream.ORDER, 3).shape == (0,)


def test_every_permutation_is_equally_likely():
    """All 6 orders of 3 things over 3000 epochs: chi-squared with 5 degrees of freedom."""
    codes = [permutation(3, 5, Stream.ORDER, epoch) @ [9, 3, 1] for epoch in range(3000)]
    _, counts = np.unique(codes, return_counts=True)
    assert counts.size == 6
    assert ((counts - 500) ** 2).sum() / 500 < 20.5  # exceeded with probability 0.001


def test_streams_keep_their_numbers():
    """Saved runs rest on them; new streams may join, each with a number of its own."""
    saved = {
        "INIT": 0,
        "ORDER": 1,
        "DEQUANTIZE": 2,
        "DEQUANTIZE_EVALUATION": 3,
        "SAMPLE": 4,
        "PERMUTATION": 5,
    }
    assert saved.items() <= dict(Stream.__members__).items()
    assert len(Stream.__members__) == len(set(Stream))


@pytest.mark.parametrize("bad", [-1, 1.5, None, "7"])
@pytest.mark.parametrize("name", ["seed", "stream", "step"])
def test_bad_names_of_a_stream(name, bad):
    given = {"seed": 0, "stream": 0, "step": 0, name: bad}
    for draw in (uniform, normal):
        with pytest.raises(ConfigurationError, match=f"{name} is {bad!r}"):
            draw(get_backend("reference"), (2,), **given)
    with pytest.raises(ConfigurationError, match=f"{name} is {bad!r}"):
        permutation(2, **given)


@pytest.mark.parametrize(("name", "limit"), [("seed", 2**64), ("stream", 2**32), ("step", 2**32)])
def test_limits(name, limit):
    backend = get_backend("numpy")
    given = {"seed": 0, "stream": 0, "step": 0}
    last = uniform(backend, (8,), **given | {name: limit - 1})
    assert (last != uniform(backend, (8,), **given | {name: limit // 2 - 1})).any()
    with pytest.raises(ConfigurationError, match=f"{name} is {limit}"):
        uniform(backend, (8,), **given | {name: limit})


def test_bad_shape_and_dtype():
    backend = get_backend("reference")
    with pytest.raises(ShapeError, match="-1"):
        uniform(backend, (2, -1), 0, 0, 0)
    with pytest.raises(DtypeError, match="float16"):
        normal(backend, (2,), 0, 0, 0, np.float16)
