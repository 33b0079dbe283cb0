"""Every CUDA kernel against the reference, on a GPU or on the stand-in device of cuda_on_cpu.

On the latter each call is repeated with other orders of a block's threads, nothing may be copied
to or from the host, and nothing may be written outside of an array.
"""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gpu import ON_GPU, tool

from npflow import get_backend
from npflow.selftest.comparison import arrays_of, compare, on_arrays, rounded
from npflow.selftest.examples import FAMILIES, SIZES, examples

pytestmark = ON_GPU

NAMES = tuple(examples(*SIZES[0]))
ORDERS = ("forward", "reverse", "random:3", "warps")
SMALL = 7, 5
REFUSED = re.compile(r"TypeError: \w+: \w+( \[\d+\])? (is not C-contiguous|has dtype \w+); ")
# Their references know no empty batch: a mean or the largest of nothing, the first of no images.
NEVER_EMPTY = {
    "moments", "actnorm_forward", "actnorm_inverse", "actnorm_backward", "actnorm_inverse_backward",
    "batch_norm_backward", "drift",
}  # fmt: skip

every_kernel = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("dtype", ["float32", "float64"])


def sizes(name):
    """Small ones; and one that takes a linear layer to cuBLAS."""
    return (SMALL, (600, 3)) if name.startswith("linear") else (SMALL,)


def call(backend, name, arguments, order="forward"):
    """What the kernel returns and what it leaves of its arguments, on the host."""
    device = on_arrays(backend.xp.array, rounded(arguments, backend.dtype))
    stand_in = tool()
    with (
        stand_in.thread_order(order) if stand_in else nullcontext(),
        stand_in.count() if stand_in else nullcontext() as counts,
    ):
        results = getattr(backend.kernels, name)(*device)
    if stand_in:
        assert counts["h2d"] == counts["d2h"] == 0
        assert stand_in.check_memory() == []
    return [array.get() for array in arrays_of((results, device), backend.xp.ndarray)]


def assert_right(backend, name, arguments):
    result = compare(backend, name, arguments)
    assert result.ok, result


def assert_same_bits(found, expected):
    for mine, other in zip(found, expected, strict=True):
        assert mine.tobytes() == other.tobytes()


def altered(backend, name, alter):
    """The backend with one kernel, which is given alter(arguments) and writes to arguments."""
    kernel = getattr(backend.kernels, name)

    def given_altered(*arguments):
        new = alter(arguments)
        results = kernel(*new)
        kind = backend.xp.ndarray
        for old, changed in zip(arrays_of(arguments, kind), arrays_of(new, kind), strict=True):
            old[...] = changed
        return results

    return replace(backend, kernels=SimpleNamespace(**{name: given_altered}))


def assert_right_or_refused(backend, name, arguments, number, change):
    """What comes of a call with change(array) for the array argument of that number."""
    alter = at_array(number, change, backend.xp.ndarray)
    result = compare(altered(backend, name, alter), name, arguments)
    assert result.ok or REFUSED.match(result.problem or ""), (number, result)


def at_array(number, function, kind):
    """A change of nested tuples: function on their array of that number."""

    def alter(value):
        if isinstance(value, tuple):
            return tuple(alter(part) for part in value)
        if isinstance(value, kind):
            alter.seen += 1
            return function(value) if alter.seen == number + 1 else value
        return value

    alter.seen = 0
    return alter


@both
@every_kernel
def test_agrees_with_the_reference_in_any_order_of_threads(name, dtype):
    backend = get_backend("cupy", dtype)
    for size in SIZES:
        for arguments in examples(*size)[name]:
            assert_right(backend, name, arguments)
            first = call(backend, name, arguments)
            for order in ORDERS[1:]:
                assert_same_bits(call(backend, name, arguments, order), first)


@every_kernel
def test_small_grids_stride_over_what_is_left(name, monkeypatch):
    """A grid has no more blocks than the device takes; here, no more than two."""
    backend, arguments = get_backend("cupy", "float64"), examples(37, 33)[name][0]
    expected = call(backend, name, arguments)
    for family in (f.__name__.removeprefix("_") for f in FAMILIES):
        module = importlib.import_module(f"npflow.kernels.gpu.{family}")
        for size in ("per_row", "per_element", "_per_warp"):
            if hasattr(module, size):
                monkeypatch.setattr(module, size, _at_most_two_blocks(getattr(module, size)))
    assert_same_bits(call(backend, name, arguments), expected)


def _at_most_two_blocks(size):
    def limited(*sizes):
        (blocks, *others), block = size(*sizes)
        return (min(blocks, 2), *others), block

    return limited


@every_kernel
def test_a_strided_array_is_read_right_or_refused_by_name(name):
    backend = get_backend("cupy", "float64")
    xp = backend.xp

    def spread(array):
        wide = xp.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        if array.dtype.kind == "f":
            wide[...] = np.nan
        wide[..., ::2] = array
        return wide[..., ::2]

    for size in sizes(name):
        arguments = examples(*size)[name][0]
        for number in range(len(arrays_of(arguments))):
            for change in (spread, xp.asfortranarray):
                assert_right_or_refused(backend, name, arguments, number, change)


@both
@every_kernel
def test_an_array_of_another_dtype_is_refused_by_name(name, dtype):
    backend = get_backend("cupy", dtype)
    other = {"float32": "float64", "float64": "float32", "int64": "int32"}
    for size in sizes(name):
        arguments = examples(*size)[name][0]
        kinds = [array.dtype.kind for array in arrays_of(arguments)]
        for number, kind in enumerate(kinds):
            if kind == "i" or kinds.count("f") > 1:  # a single array brings its dtype with it
                assert_right_or_refused(
                    backend, name, arguments, number, lambda a: a.astype(other[a.dtype.name])
                )


@every_kernel
def test_a_numpy_array_is_refused_by_name(name):
    backend = get_backend("cupy", "float32")
    arguments = rounded(examples(*SMALL)[name][0], backend.dtype)
    device = on_arrays(backend.xp.array, arguments)
    if arrays_of(arguments):
        with pytest.raises(
            TypeError, match=r"\w+: \w+( \[0\])? is a ndarray; expected a CuPy array"
        ):
            getattr(backend.kernels, name)(
                *at_array(0, lambda a: a.get(), backend.xp.ndarray)(device)
            )


@every_kernel
def test_a_number_of_another_kind_is_refused(name):
    backend = get_backend("cupy", "float32")
    arguments = rounded(examples(*SMALL)[name][0], backend.dtype)
    for k, argument in enumerate(arguments):
        wrong = []
        if isinstance(argument, float):
            wrong = ["0.5", None, backend.xp.full(1, argument, backend.dtype)]
        elif type(argument) is int and name in ("uniform", "normal"):
            wrong = [float(argument), "3"]
        for value in wrong:
            device = list(on_arrays(backend.xp.array, arguments))
            device[k] = value
            with pytest.raises(TypeError):
                getattr(backend.kernels, name)(*device)


def test_a_float_for_a_count_is_refused_by_name():
    launch = importlib.import_module("npflow.kernels.gpu.launch")
    optimizer = importlib.import_module("npflow.kernels.gpu.optimizer")
    a = get_backend("cupy").xp.zeros(3, np.float32)
    with pytest.raises(TypeError, match=r"ema_update: n is 3\.0 \(float\); expected int64"):
        optimizer._ema_update(a.dtype, launch.per_element(3), a, a, 0.5, 3.0)


@both
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_EMPTY])
def test_an_empty_batch(name, dtype):
    for arguments in examples(0, 5)[name]:
        assert_right(get_backend("cupy", dtype), name, arguments)


@both
@pytest.mark.parametrize("name", ["conv_forward", "conv_backward"])
def test_convolutions_in_chunks_of_images(name, dtype, monkeypatch):
    conv = importlib.import_module("npflow.kernels.gpu.conv")
    for patches_bytes in (1, 3000):  # an image at a time, and a few
        monkeypatch.setattr(conv, "_PATCHES_BYTES", patches_bytes)
        for arguments in examples(*SMALL)[name]:
            assert_right(get_backend("cupy", dtype), name, arguments)


@both
@pytest.mark.parametrize("name", ["autoregressive_inverse", "autoregressive_inverse_backward"])
def test_autoregressive_networks_in_narrow_panels(name, dtype, monkeypatch):
    autoregressive = importlib.import_module("npflow.kernels.gpu.autoregressive")
    for units in (1, 30):
        monkeypatch.setattr(autoregressive, "PANEL_UNITS", units)
        for arguments in examples(*SMALL)[name]:
            assert_right(get_backend("cupy", dtype), name, arguments)


@both
def test_splines_of_huge_parameters_stay_finite(dtype):
    backend, rng = get_backend("cupy", dtype), np.random.default_rng(0)
    name = "rational_quadratic_{}".format
    for size in (50.0, 1e4, 1e15, 1e30):
        x, params, dlog_det = rng.normal(size=(9, 3)), rng.normal(size=(9, 69)), rng.normal(size=9)
        args = x, size * params, 3.0
        for direction in ("forward", "inverse"):
            assert all(np.isfinite(a).all() for a in call(backend, name(direction), args))
        for direction in ("backward", "inverse_backward"):
            found = call(backend, name(direction), (x, dlog_det, *args))
            assert all(np.isfinite(a).all() for a in found)


@both
@pytest.mark.parametrize("scale", [30, 1000])
def test_mixtures_of_extreme_weights_and_widths(dtype, scale):
    """Weights e^20000 apart; widths of e^-scale, 1 and e^scale."""
    backend, rng = get_backend("cupy", dtype), np.random.default_rng(0)
    params = np.zeros((4, 3, 3, 5))
    params[:, 0] = np.array([1e4, -1e4, 0])[:, None]
    params[:, 2, 1], params[:, 2, 2] = -scale, scale
    x = rng.normal(size=(4, 5))
    x[0] = 0
    args = rounded((x, params.reshape(4, -1), rng.normal(size=4)), backend.dtype)
    reference = get_backend("reference", dtype).kernels
    found, *_ = call(backend, "mixture_log_prob", args[:2])
    np.testing.assert_allclose(found, reference.mixture_log_prob(*args[:2]), rtol=1e-5)
    found = call(backend, "mixture_backward", args)[:2]
    for mine, expected in zip(found, reference.mixture_backward(*args), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-30)
