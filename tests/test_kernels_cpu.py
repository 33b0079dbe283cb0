"""Every Numba kernel against its NumPy specification, and the elementary functions against NumPy.

A kernel is compared with the specification in a wider type on the same numbers (float64 for
float32, long double for float64): what is bounded is its own rounding error, not the sum of two.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import npflow
from npflow.errors import ConfigurationError
from npflow.kernels.cpu import (
    affine,
    batch_norm,
    columns,
    densities,
    diagonal,
    logit,
    math,
    optimizer,
    threads,
)
from npflow.kernels.reference import affine as reference_affine
from npflow.kernels.reference import batch_norm as reference_batch_norm
from npflow.kernels.reference import columns as reference_columns
from npflow.kernels.reference import densities as reference_densities
from npflow.kernels.reference import diagonal as reference_diagonal
from npflow.kernels.reference import logit as reference_logit
from npflow.kernels.reference import optimizer as reference_optimizer

DTYPES = [np.float32, np.float64]
both = pytest.mark.parametrize("dtype", DTYPES)
WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}
LAM = 0.05


def _loop(function):
    @njit(error_model="numpy", fastmath={"contract"})
    def loop(x):
        y = np.empty_like(x)
        for k in range(x.size):
            y[k] = function(x[k])
        return y

    return loop


def _grid(dtype, low, high):
    """Dense both in value and in exponent, with every magnitude down to the subnormal ones."""
    info = np.finfo(dtype)
    smallest = np.log10(info.smallest_subnormal)
    sizes = 10 ** np.linspace(smallest, np.log10(max(-low, high)), 40001)
    x = np.concatenate([np.linspace(low, high, 40001), sizes, -sizes, [low, high]])
    return x[(x >= low) & (x <= high)].astype(dtype)


def _sigmoid(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def _logistic(x):
    return -np.abs(x) - 2 * np.log1p(np.exp(-np.abs(x)))


# name: the same in NumPy, the range for float32 and float64, the bound in units of the last place
FUNCTIONS = {
    "exp": (np.exp, (-106, 90), (-747, 711), 1.1),
    "tanh": (np.tanh, (-25, 25), (-45, 45), 2.6),
    "sigmoid": (_sigmoid, (-106, 90), (-747, 711), 2.6),
    "log": (np.log, (0, 3.4e38), (0, 1.7e308), 1.1),
    "log1p": (np.log1p, (-1, 3.4e38), (-1, 1.7e308), 1.1),
    "logistic_log_density": (_logistic, (-200, 200), (-2000, 2000), 2.6),
}


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_accurate_over_its_range(name, dtype):
    exact, range32, range64, bound = FUNCTIONS[name]
    x = _grid(dtype, *(range32 if dtype == np.float32 else range64))
    y = _loop(getattr(math, name))(x)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.longdouble))
        rounded = expected.astype(dtype)
        error = np.abs(y - expected) / np.spacing(np.abs(rounded)).astype(np.longdouble)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(y[~finite], rounded[~finite])
    assert error[finite].max() <= bound


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_at_the_special_values(name, dtype):
    exact = FUNCTIONS[name][0]
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1000, -1000, -1, 1, -2], dtype)
    with np.errstate(all="ignore"):
        expected = exact(x)
    y = _loop(getattr(math, name))(x)
    np.testing.assert_allclose(y, expected, rtol=8 * np.finfo(dtype).eps)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(y[zero]), np.signbit(expected[zero]))


def _widen(value):
    return value.astype(WIDER[value.dtype]) if isinstance(value, np.ndarray) else value


def _agree(kernel, specification, args, accumulated=(), rounding=64.0, terms=0.0):
    """Outputs and the arrays added to (their positions) agree to a few roundings of the dtype.

    An element may be off by `rounding` units of its own last place, plus two of the largest element
    of its array, which bounds the cancellation in a sum of a few terms. Where all elements are one
    sum that may cancel, `terms` is the sum of the absolute values of its terms.
    """
    dtype = args[0].dtype
    mine = [arg.copy() if k in accumulated else arg for k, arg in enumerate(args)]
    theirs = [_widen(arg.copy() if k in accumulated else arg) for k, arg in enumerate(args)]
    got, expected = kernel(*mine), specification(*theirs)
    pairs = list(zip(got, expected, strict=True)) if isinstance(got, tuple) else [(got, expected)]
    pairs += [(mine[k], theirs[k]) for k in accumulated]
    eps = np.finfo(dtype).eps
    for a, b in pairs:
        if a is None:
            assert b is None
            continue
        assert a.dtype == dtype
        assert a.shape == b.shape
        largest = max(np.abs(b).max(initial=0) * np.sqrt(len(b) + 1), terms)
        np.testing.assert_allclose(a, b, rtol=rounding * eps, atol=2 * eps * largest)


@both
def test_the_comparison_rejects_a_small_error(dtype):
    x = np.random.default_rng(0).normal(size=(70, 300)).astype(dtype)
    wrong = x.copy()
    wrong[3, 4] *= 1 + 200 * np.finfo(dtype).eps
    _agree(lambda x: x, lambda x: x, (x,))
    with pytest.raises(AssertionError):
        _agree(lambda x: wrong, lambda x: x, (x,))


def _random(seed, dtype, strided):
    """A maker of normal arrays, contiguous or with both axes strided."""
    rng = np.random.default_rng(seed)

    def make(*shape):
        if not strided:
            return rng.normal(size=shape).astype(dtype)
        wide = rng.normal(size=[2 * n + 1 for n in shape]).astype(dtype)
        return wide[tuple(slice(1, None, 2) for _ in shape)][tuple(slice(n) for n in shape)]

    return make


def sizes(test):
    shape = {
        "rows": st.one_of(st.integers(1, 70), st.just(263)),
        "d": st.one_of(st.integers(1, 40), st.just(301)),
        "seed": st.integers(0, 2**16),
        "dtype": st.sampled_from(DTYPES),
        "strided": st.booleans(),
    }
    return settings(max_examples=40, deadline=None)(given(**shape)(test))


@sizes
def test_affine(rows, d, seed, dtype, strided):
    make = _random(seed, dtype, strided)
    x, params, bound = make(rows, d), 3 * make(rows, 2 * d), np.abs(make(d)) + dtype(0.5)
    g, dlog_det, dbound = make(rows, d), make(rows), make(d)
    terms = bound.sum()  # |log-scale| <= bound
    _agree(affine.affine_forward, reference_affine.affine_forward, (x, params, bound), terms=terms)
    _agree(affine.affine_inverse, reference_affine.affine_inverse, (x, params, bound), terms=terms)
    tanh = np.tanh(params[:, d:])
    args = (g, dlog_det, x, tanh, bound, dbound)
    _agree(affine.affine_backward, reference_affine.affine_backward, args, (5,))
    _agree(affine.affine_inverse_backward, reference_affine.affine_inverse_backward, args, (5,))


@both
def test_affine_with_large_raw_log_scale(dtype):
    raw = np.array([[-1e4, -30, -9, 0, 9, 30, 1e4]], dtype)
    d = raw.shape[1]
    x, bound = np.ones((1, d), dtype), np.full(d, 5, dtype)
    params = np.concatenate([np.zeros_like(raw), raw], axis=1)
    _agree(affine.affine_forward, reference_affine.affine_forward, (x, params, bound))
    _, _, tanh = affine.affine_forward(x, params, bound)
    np.testing.assert_array_equal(tanh[0, [0, -1]], [-1, 1])
    _, dparams = affine.affine_backward(x, np.ones(1, dtype), x, tanh, bound, np.zeros_like(bound))
    np.testing.assert_array_equal(dparams[0, [d, -1]], 0)


@sizes
def test_diagonal(rows, d, seed, dtype, strided):
    make = _random(seed, dtype, strided)
    x, log_scale, g, dlog_det, total = make(rows, d), make(d), make(rows, d), make(rows), make(d)
    for name in ("forward", "inverse"):
        pair = (getattr(m, f"diagonal_{name}") for m in (diagonal, reference_diagonal))
        _agree(*pair, (x, log_scale), terms=np.abs(log_scale).sum())
    for name in ("backward", "inverse_backward"):
        pair = (getattr(m, f"diagonal_{name}") for m in (diagonal, reference_diagonal))
        _agree(*pair, (g, dlog_det, x, log_scale, total), (4,))


@sizes
def test_batch_norm(rows, d, seed, dtype, strided):
    make = _random(seed, dtype, strided)
    x, mean, var = make(rows, d), make(d), np.abs(make(d)) + dtype(0.1)
    log_gamma, beta, g, dlog_det = make(d), make(d), make(rows, d), make(rows)
    dlog_gamma, dbeta = make(d), make(d)
    mine, theirs = batch_norm, reference_batch_norm
    _agree(mine.moments, theirs.moments, (x,))
    affine_args = (x, mean, var, log_gamma, beta, 1e-4)
    terms = np.abs(log_gamma).sum() + 0.5 * np.abs(np.log(var)).sum()
    _agree(mine.batch_norm_forward, theirs.batch_norm_forward, affine_args, terms=terms)
    _agree(mine.batch_norm_inverse, theirs.batch_norm_inverse, affine_args, terms=terms)
    args = (g, dlog_det, x, mean, var, log_gamma, 1e-4)
    for own in (False, True):
        _agree(
            mine.batch_norm_backward,
            theirs.batch_norm_backward,
            (*args, own, dlog_gamma, dbeta),
            (8, 9),
        )
    _agree(
        mine.batch_norm_inverse_backward,
        theirs.batch_norm_inverse_backward,
        (*args, dlog_gamma, dbeta),
        (7, 8),
    )


@both
def test_moments_of_data_far_from_zero(dtype):
    """The variance keeps its digits when the mean is a thousand times the standard deviation."""
    x = (1000 + np.random.default_rng(0).normal(size=(5003, 3))).astype(dtype)
    mean, var = batch_norm.moments(x)
    wide = x.astype(np.longdouble)
    rtol = 2 * np.finfo(dtype).eps
    np.testing.assert_allclose(mean, wide.mean(axis=0).astype(float), rtol=rtol)
    np.testing.assert_allclose(var, wide.var(axis=0).astype(float), rtol=max(rtol, 1e-13))


@sizes
def test_logit(rows, d, seed, dtype, strided):
    make = _random(seed, dtype, strided)
    x = dtype(256) * np.abs(np.sin(make(rows, d)))
    x[0, 0] = 0
    y, g, dlog_det = 3 * make(rows, d), make(rows, d), make(rows)
    _agree(logit.logit_forward, reference_logit.logit_forward, (x, LAM, 256))
    _agree(logit.logit_inverse, reference_logit.logit_inverse, (y, LAM, 256))
    for name in ("logit_backward", "logit_inverse_backward"):
        pair = (getattr(m, name) for m in (logit, reference_logit))
        _agree(*pair, (g, dlog_det, y, LAM, 256))


@both
def test_logit_at_the_ends(dtype):
    """y(levels - x) = -y(x): near levels, 1 - p must not come out as a difference from 1."""
    x = np.array([[0, 1 / 1024, 0.125, 1, 50, 128]], dtype)  # so that levels - x is exact
    for lam in (0.05, 1e-6):
        exact, log_det = reference_logit.logit_forward(_widen(x), lam, 256)
        for sign, y in ((1, x), (-1, 256 - x)):
            got, got_log_det = logit.logit_forward(y, lam, 256)
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(sign * got, exact, rtol=8 * eps, atol=8 * eps)
            np.testing.assert_allclose(got_log_det, log_det, rtol=8 * eps)
    y = np.array([[-60, -30, 30, 60]], dtype)
    one = np.ones(1, dtype)
    _agree(logit.logit_inverse, reference_logit.logit_inverse, (y, 0.05, 256))
    for name in ("logit_backward", "logit_inverse_backward"):
        pair = (getattr(m, name) for m in (logit, reference_logit))
        _agree(*pair, (np.ones_like(y), one, y, 0.05, 256), rounding=128.0)


@sizes
def test_densities(rows, d, seed, dtype, strided):
    make = _random(seed, dtype, strided)
    z, dlog_prob = 3 * make(rows, d), make(rows)
    z[0, 0] = 80
    for name in ("normal_log_prob", "logistic_log_prob"):
        _agree(getattr(densities, name), getattr(reference_densities, name), (z,))
        name += "_backward"
        _agree(getattr(densities, name), getattr(reference_densities, name), (z, dlog_prob))


def test_a_long_row_sum_in_float32_is_rounded_once():
    """3072 features, as in a 32 x 32 image: naive float32 sums are off by tens of roundings."""
    z = np.random.default_rng(0).normal(size=(64, 3072)).astype(np.float32)
    expected = reference_densities.normal_log_prob(z.astype(np.float64))
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(densities.normal_log_prob(z), expected, rtol=eps)
    naive = -0.5 * np.cumsum(z * z, axis=1, dtype=np.float32)[:, -1] - 1536 * np.log(2 * np.pi)
    assert np.abs(naive / expected - 1).max() > eps


@sizes
def test_columns(rows, d, seed, dtype, strided):
    x = _random(seed, dtype, strided)(rows, d)
    order = np.random.default_rng(seed).permutation(d)
    kept, transformed = order[: d // 2], order[d // 2 :]
    np.testing.assert_array_equal(columns.permute(x, order), x[:, order])
    parts = columns.split(x, kept, transformed)
    for mine, theirs in zip(parts, reference_columns.split(x, kept, transformed), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(columns.merge(*parts, kept, transformed), x)
    y = _random(seed + 1, dtype, strided)(rows, len(kept))
    merged = columns.merge_add(parts[0], y, parts[1], kept, transformed)
    np.testing.assert_array_equal(merged[:, kept], x[:, kept] + y)
    np.testing.assert_array_equal(merged[:, transformed], x[:, transformed])
    np.testing.assert_array_equal(columns.add_up((x,)), x)
    np.testing.assert_array_equal(columns.add_up((x, -2 * x, x, x)), x)


def _adam_arrays(size, dtype):
    rng = np.random.default_rng(size)
    values, grads, m = (rng.normal(size=size).astype(dtype) for _ in range(3))
    return values, grads, m, np.abs(rng.normal(size=size)).astype(dtype)


@both
@pytest.mark.parametrize("size", [1, 17, 40001])
@pytest.mark.parametrize("norm", [None, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("step", [1, 1000])
def test_adam(size, dtype, norm, step):
    mine = _adam_arrays(size, dtype)
    theirs = [_widen(a) for a in mine]
    norm_of_grads = optimizer.global_norm(mine[1])
    expected = reference_optimizer.global_norm(theirs[1])
    assert norm_of_grads.dtype == dtype
    np.testing.assert_allclose(norm_of_grads, expected, rtol=2 * np.finfo(dtype).eps)
    used = norm_of_grads if norm is None else np.array([norm], dtype)
    settings = (0.5, 1e-3, 0.9, 0.999, 1e-8, 1e-2, step)
    before = [a.copy() for a in mine]
    optimizer.adam_step(*mine, used, *settings)
    reference_optimizer.adam_step(*theirs, _widen(used), *settings)
    for a, b, old in zip(mine, theirs, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=16 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
        if norm is not None and not np.isfinite(norm):
            np.testing.assert_array_equal(a, old)
    assert norm is not None or not np.array_equal(mine[0], before[0])


@both
def test_ema(dtype):
    average, values = _adam_arrays(1001, dtype)[:2]
    _agree(optimizer.ema_update, reference_optimizer.ema_update, (average, values, 0.99), (0,))


@both
@pytest.mark.parametrize(("rows", "d"), [(1, 5000), (37, 301), (263, 7), (4099, 1)])
def test_results_do_not_depend_on_the_number_of_threads(rows, d, dtype, monkeypatch):
    make = _random(rows, dtype, False)
    x, params, bound, g, dlog_det = (
        make(rows, d),
        make(rows, 2 * d),
        make(d),
        make(rows, d),
        make(rows),
    )
    var, tanh = bound * bound + dtype(1), np.tanh(params[:, d:])
    monkeypatch.setattr(threads, "THRESHOLD", 0)

    def everything():
        sums = [np.ones(d, dtype) for _ in range(8)]
        state = _adam_arrays(rows * d, dtype)
        norm = optimizer.global_norm(state[1])
        optimizer.adam_step(*state, norm, 1.0, 1e-3, 0.9, 0.999, 1e-8, 1e-2, 3)
        optimizer.ema_update(state[2], state[0], 0.9)
        results = [
            affine.affine_forward(x, params, bound),
            affine.affine_inverse(x, params, bound),
            affine.affine_backward(g, dlog_det, x, tanh, bound, sums[0]),
            affine.affine_inverse_backward(g, dlog_det, x, tanh, bound, sums[1]),
            diagonal.diagonal_forward(x, bound),
            diagonal.diagonal_inverse(x, bound),
            diagonal.diagonal_backward(g, dlog_det, x, bound, sums[2]),
            diagonal.diagonal_inverse_backward(g, dlog_det, x, bound, sums[3]),
            batch_norm.moments(x),
            batch_norm.batch_norm_forward(x, bound, var, bound, bound, 1e-4),
            batch_norm.batch_norm_backward(
                g, dlog_det, x, bound, var, bound, 1e-4, True, sums[4], sums[5]
            ),
            batch_norm.batch_norm_inverse_backward(
                g, dlog_det, x, bound, var, bound, 1e-4, sums[6], sums[7]
            ),
            logit.logit_forward(np.abs(np.sin(x)), LAM, 1),
            logit.logit_inverse(x, LAM, 1),
            logit.logit_backward(g, dlog_det, x, LAM, 1),
            logit.logit_inverse_backward(g, dlog_det, x, LAM, 1),
            densities.normal_log_prob(x),
            densities.normal_log_prob_backward(x, dlog_det),
            densities.logistic_log_prob(x),
            densities.logistic_log_prob_backward(x, dlog_det),
            columns.permute(x, np.arange(d)[::-1].copy()),
            norm,
            *state,
            *sums,
        ]
        return [a for r in results for a in (r if isinstance(r, tuple) else (r,))]

    monkeypatch.setattr(threads, "THREADS", 1)
    alone = everything()
    for count in (2, 3):
        monkeypatch.setattr(threads, "THREADS", count)
        for a, b in zip(alone, everything(), strict=True):
            np.testing.assert_array_equal(a, b)


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_threads_survive_a_fork():
    code = """
import os, numpy as np
from npflow.kernels.cpu import threads, densities
threads.THRESHOLD = 0
z = np.ones((256, 64))
expected = densities.logistic_log_prob(z)
assert threads._pool is not None
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(densities.logistic_log_prob(z), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = _python(code, NPFLOW_THREADS="2", PYTHONWARNINGS="ignore")
    assert (done.returncode, done.stderr) == (0, "")


def test_number_of_threads_from_the_environment(monkeypatch):
    monkeypatch.setenv("NPFLOW_THREADS", "3")
    assert threads._count() == 3
    monkeypatch.delenv("NPFLOW_THREADS")
    assert threads._count() == len(os.sched_getaffinity(0))
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("NPFLOW_THREADS", wrong)
        with pytest.raises(ConfigurationError, match="NPFLOW_THREADS"):
            threads._count()


def test_an_error_in_another_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(threads, "THREADS", 2)

    def fails_in_the_second_half(start, stop):
        if start:
            raise ArithmeticError("in a thread")

    with pytest.raises(ArithmeticError, match="in a thread"):
        threads.run(fails_in_the_second_half, 2, threads.THRESHOLD)


_pycache = shutil.ignore_patterns("__pycache__")


@pytest.mark.slow
def test_a_change_in_an_inlined_file_makes_the_cached_kernels_anew(tmp_path):
    package = tmp_path / "npflow"
    shutil.copytree(Path(npflow.__file__).parent, package, ignore=_pycache)
    shutil.copytree(Path(threads.__file__).parents[1], package / "kernels", ignore=_pycache)
    code = "import numpy as np; from npflow.kernels.cpu import logistic_log_prob as f; "
    code += "print(f(np.ones((1, 1)))[0])"

    def run():
        return float(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path))

    before = run()
    assert run() == before
    source = package / "kernels" / "cpu" / "math.py"
    source.write_text(source.read_text().replace("math.factorial(k)", "(k + math.factorial(k))"))
    assert run() != before
