"""npflow.selftest: its examples are complete, its tolerances reject errors, its report is true."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gpu import ON_GPU, PROBLEM

from npflow import get_backend
from npflow.selftest import __main__ as selftest
from npflow.selftest.comparison import arrays_of, compare, on_arrays
from npflow.selftest.examples import MEMORY_BOUND, SIZES, examples
from npflow.selftest.timing import FEATURES, ROWS, kernel_rate
from npflow.selftest.training import FLOWS

NAMES = tuple(examples(7, 5))


def test_every_kernel_has_examples():
    kernels = get_backend("reference").kernels
    assert set(NAMES) == {name for name, f in vars(kernels).items() if inspect.isfunction(f)}
    for name, calls in examples(7, 5).items():
        parameters = inspect.signature(getattr(kernels, name)).parameters
        assert all(len(arguments) == len(parameters) for arguments in calls), name
    assert set(MEMORY_BOUND) < set(NAMES)


# Arguments that are written to and not read.
OUTPUTS = {("update_inverse", 2), ("update_inverse", 3), ("drift", 2)}


@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_a_thousandth_in_any_argument_is_found(name):
    """In some example; even in float32, of every real array and every number."""
    backend, calls = get_backend("reference", "float32"), examples(7, 5)[name]
    for k, argument in enumerate(calls[0]):
        is_number = isinstance(argument, int | float) and not isinstance(argument, bool)
        is_real = any(array.dtype.kind == "f" for array in arrays_of(argument))
        if (is_number or is_real) and (name, k) not in OUTPUTS:
            wrong = with_wrong_argument(backend, name, k)
            assert not all(compare(wrong, name, arguments).ok for arguments in calls), k


def with_wrong_argument(backend, name, k):
    """The backend with one kernel, which sees argument k wrong and writes where it should."""
    kernel = getattr(backend.kernels, name)

    def wrong(value):
        if not isinstance(value, np.ndarray):
            return value + 1 if isinstance(value, int) else 1.001 * value
        value = value.copy()
        if value.dtype.kind == "f":
            value.ravel()[::2] *= 1.001  # not of all: some kernels see ratios alone
            value.ravel()[1::2] *= 0.999
        return value

    def call(*arguments):
        given = list(on_arrays(np.copy, arguments))
        given[k] = on_arrays(wrong, given[k]) if arrays_of(given[k]) else wrong(given[k])
        before = [array.copy() for array in arrays_of(tuple(given))]
        results = kernel(*given)
        after = arrays_of(tuple(given))
        for argument, new, old in zip(arrays_of(arguments), after, before, strict=True):
            if not np.array_equal(new, old, equal_nan=True):
                argument[...] = new
        return results

    return replace(backend, kernels=SimpleNamespace(**{name: call}))


def with_kernel(name, function):
    backend = get_backend("numpy", "float64")
    kernels = SimpleNamespace(
        **{name: lambda *args: function(getattr(backend.kernels, name), *args)}
    )
    return replace(backend, kernels=kernels)


def test_what_is_wrong_besides_numbers_is_said():
    (arguments,) = examples(7, 5)["affine_forward"]

    def problem(function):
        result = compare(with_kernel("affine_forward", function), "affine_forward", arguments)
        assert not result.ok
        return result.problem

    def writes_to_its_input(kernel, x, params, bound):
        x[0, 0] += 1
        return kernel(x, params, bound)

    assert problem(lambda f, *a: f(*a)[:2]) == "2 results; expected 3"
    assert problem(lambda f, *a: (f(*a)[0][:3], *f(*a)[1:])).startswith(
        "result 0 is float64 (3, 5)"
    )
    assert problem(lambda f, *a: (f(*a)[0].astype("f4"), *f(*a)[1:])).startswith(
        "result 0 is float3"
    )
    assert problem(lambda f, *a: f()).startswith("TypeError: ")
    assert problem(writes_to_its_input) == "array argument 0 was changed"
    assert problem(lambda f, x, *a: f(np.full_like(x, np.nan), *a)) is None  # inf is its error


def test_rates_count_the_bytes_that_a_call_must_move():
    backend = get_backend("numpy", "float32")
    affine, adam = (kernel_rate(backend, name, 1) for name in ("affine_forward", "adam_step"))
    batch, rest = divmod(affine.bytes // 4 - FEATURES, 5 * FEATURES + 1)  # kernels/README.md
    assert rest == 0 and batch % ROWS == 0
    assert (adam.bytes // 4 - 1) % (7 * ROWS * FEATURES) == 0
    for rate in (affine, adam):
        assert 10**6 <= rate.bytes < 1.5e6 and rate.seconds > 0
        assert math.isclose(rate.gb_per_second, rate.bytes / rate.seconds / 1e9)


def test_on_the_cpu(tmp_path, capsys):
    out = tmp_path / "selftest.json"
    assert selftest.main(["--backend", "numpy", "--megabytes", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "all ok, of" in printed and "FAILED" not in printed
    results = json.loads(out.read_text())
    assert results["ok"] and results["machine"]["backend"] == "numpy"
    assert results["copy"]["gb_per_second"] > 0
    assert results["rates"].keys() == set(MEMORY_BOUND)
    assert results["kernels"].keys() == set(NAMES) and results["training"].keys() == set(FLOWS)
    for name, both in (results["kernels"] | results["training"]).items():
        assert name in printed and both.keys() == {"float32", "float64"}
        assert all(result["ok"] and result["problem"] is None for result in both.values())
    assert results["training"]["MAF"]["float64"]["launches_per_step"] is None


def test_a_wrong_kernel_is_reported(tmp_path, capsys, monkeypatch):
    """In its own line, and in the training of a flow that calls it."""
    kernels, out = get_backend("numpy").kernels, tmp_path / "selftest.json"
    right = kernels.affine_backward

    def wrong(dz, dlog_det, x, tanh, bound, dbound):
        dx, dparams = right(dz, dlog_det, x, tanh, bound, dbound)
        return dx, dparams * dparams.dtype.type(1.1)

    def broken(x, log_scale):
        raise RuntimeError("out of order")

    monkeypatch.setattr(kernels, "affine_backward", wrong)
    monkeypatch.setattr(kernels, "diagonal_forward", broken)
    monkeypatch.setattr(selftest, "SIZES", SIZES[1:2])
    assert selftest.main(["--backend", "numpy", "--megabytes", "0", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    failed = {line.split()[0] for line in printed.splitlines() if "FAILED" in line[50:]}
    assert failed >= {"affine_backward", "diagonal_forward", "RealNVP"}
    assert failed <= {"affine_backward", "diagonal_forward", *FLOWS}
    assert "float32: more than 3.8e-06" in printed and "RuntimeError: out of order" in printed
    assert " FAILED, of " in printed and "all ok" not in printed
    results = json.loads(out.read_text())
    assert not results["ok"] and results["copy"] is None and results["rates"] == {}
    assert not any(result["ok"] for result in results["training"]["RealNVP"].values())
    assert results["kernels"]["diagonal_forward"]["float32"]["error"] is None


def test_a_misuse_ends_with_status_2_and_one_line(tmp_path, capsys, monkeypatch):
    assert selftest.main(["--backend", "numpy", "--megabytes", "-1"]) == 2
    monkeypatch.setattr(selftest, "check", lambda *_: {"ok": True})
    missing = tmp_path / "missing" / "selftest.json"
    assert selftest.main(["--backend", "numpy", "--out", str(missing)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["npflow.selftest"] * 2
    assert "--megabytes is -1" in lines[0] and str(missing) in lines[1]


@pytest.mark.skipif(PROBLEM is None, reason="the cupy backend runs here")
def test_without_a_device_it_ends_with_status_2_and_one_line():
    command = [sys.executable, "-m", "npflow.selftest", "--backend", "cupy"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("npflow.selftest: backend 'cupy'") and run.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", [pytest.param("cupy", marks=ON_GPU)])
def test_on_a_gpu(backend, tmp_path, capsys, monkeypatch):
    out = tmp_path / "selftest.json"
    monkeypatch.setattr(selftest, "SIZES", SIZES[1:2])
    monkeypatch.setattr(selftest, "MEMORY_BOUND", ("diagonal_forward", "adam_step"))
    assert selftest.main(["--backend", backend, "--megabytes", "1", "--out", str(out)]) == 0
    assert "compute capability" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["machine"]["CuPy"] and results["rates"].keys() == {
        "diagonal_forward",
        "adam_step",
    }
    for both in results["training"].values():
        assert both["float32"]["launches_per_step"] > 1
