"""Planted faults: what the other GPU tests would not find is not tested by them.

Each fault is put into a copy of the CUDA sources, or into a launch, and the parity of example calls
(npflow/selftest) or the stand-in device must notice. A new source needs faults of its own here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cuda_on_cpu
import numpy as np
import pytest
from cuda_on_cpu import counting

from npflow import get_backend
from npflow.selftest.comparison import compare
from npflow.selftest.examples import SIZES, examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not cuda_on_cpu.installed(),
        reason="faults are planted for the CPU run only: python tests/cuda_on_cpu -- pytest",
    ),
]

CUDA = Path(__file__).parents[1] / "kernels" / "cuda"
BARRIER = "__syncthreads();"
ORDERS = ("forward", "reverse", "random:1", "warps")


class Fault(NamedTuple):
    """In a CUDA source: the first `old` from `after` on becomes `new`. The kernel runs it."""

    file: str
    kernel: str
    after: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}-{self.after}-{self.old}"


class Barrier(NamedTuple):
    """The barrier of that number in a CUDA source is left out."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}-{self.number}"


# The bound of a loop, the term of a sum, what is added to.
FAULTS = [
    Fault(file, *rest)
    for file, faults in {
        "actnorm.cu": [
            ("actnorm_backward", "actnorm_add_sums", " + dlog_det_sum", ""),
            ("actnorm_forward", "actnorm_apply",
             "i < batch * pixels * c", "i <= batch * pixels * c"),
            ("actnorm_forward", "actnorm_apply", "first >= batch", "first + 1 >= batch"),
            ("actnorm_backward", "actnorm_backward", "if (j < c)", "if (j <= c)"),
            ("actnorm_inverse_backward", "actnorm_add_sums", "dshift[j] -=", "dshift[j] = -"),
        ],
        "affine.cu": [
            ("affine_forward", "affine_forward", "j < d;", "j <= d;"),
            ("affine_backward", "affine_backward", " + dlog_det[row]", ""),
            ("affine_backward", "affine_backward", "dbound[j] +=", "dbound[j] ="),
            ("affine_inverse", "affine_inverse", "sum -= log_scale", "sum = -log_scale"),
            ("affine_inverse_backward", "affine_inverse_backward",
             "row < batch", "row < batch - 1"),
        ],
        "autoregressive.cu": [
            ("autoregressive_inverse", " push(", "column] += sum", "column] = sum"),
            ("autoregressive_inverse", "push_row(", "k < k1", "k <= k1"),
            ("autoregressive_inverse", "invert_panel",
             "parts, d, i + 1, last", "parts, d, i + 2, last"),
            ("autoregressive_inverse", " push(", "from_ends[last - 1]", "from_ends[last - 1] - 1"),
            ("autoregressive_inverse", "case AFFINE", "z[0] - params[0]", "z[0]"),
            ("autoregressive_inverse_backward", "push_back(", "column] += sum", "column] = sum"),
            ("autoregressive_inverse_backward", "push_row_back(",
             "k < part + k1", "k <= part + k1"),
            ("autoregressive_inverse_backward", "case AFFINE: {", " - dlog_det", ""),
            ("autoregressive_inverse_backward", "void invert_panel_backward",
             "da[k] *=", "da[k] ="),
        ],
        "batch_norm.cu": [
            ("batch_norm_backward", "batch_norm_backward", " - dx_hat_mean", ""),
            ("moments", "moments", "row < batch", "row <= batch"),
            ("batch_norm_forward", "batch_norm_forward", " + epsilon", ""),
            ("batch_norm_inverse", "batch_norm_inverse", "sum -= log_scale", "sum = -log_scale"),
            ("batch_norm_inverse_backward", "batch_norm_inverse_backward",
             "dbeta[j] -=", "dbeta[j] = -"),
        ],
        "columns.cu": [
            ("merge_add", "merge_add", " + y_a[row * a + j]", ""),
            ("split", "split", "j < b;", "j < b - 1;"),
            ("merge", "merge", "j < a;", "j + 1 < a;"),
            ("permute", "permute", "j < n;", "j < n - 1;"),
            ("add_up", "add_up", "sum +=", "sum ="),
            ("add_up", "add_up", "i < n;", "i <= n;"),
        ],
        "conv.cu": [
            ("conv_forward", "take_patches", "i + above < h", "i + above <= h"),
            ("conv_forward", "take_patches", "at < width", "at <= width"),
            ("conv_backward", "add_patches", "min(k, i + k / 2 + 1)", "min(k, i + k / 2)"),
            ("conv_backward", "add_patches", "sum += patches", "sum = patches"),
        ],
        "conv_weights.cu": [
            ("normalized_weight", "sum_of_column", "row < rows", "row <= rows"),
            ("normalized_weight_backward", "normalized_weight_backward", " * along)", ")"),
            ("normalized_weight_backward", "normalized_weight_backward",
             "dgain[j] +=", "dgain[j] ="),
            ("scaled_weight", "scaled_weight", "gain * bias[j]", "bias[j]"),
            ("scaled_weight_backward", "scaled_weight_backward", " + double(db[j]) * bias[j]", ""),
            ("scaled_weight_backward", "scaled_weight_backward",
             "dweight[row * n + j] +=", "dweight[row * n + j] ="),
        ],
        "densities.cu": [
            ("bernoulli_log_prob", "bernoulli_log_prob", " - log1p(exp(-fabs(logit)))", ""),
            ("normal_log_prob", "normal_log_prob", "sum += z_i", "sum = z_i"),
            ("normal_log_prob_backward", "normal_log_prob_backward", "j < d;", "j <= d;"),
            ("logistic_log_prob", "logistic_log_prob", "j < d;", "j < d - 1;"),
            ("logistic_log_prob_backward", "logistic_log_prob_backward", " * dlog_prob[row]", ""),
            ("bernoulli_backward", "bernoulli_backward", " - probability", ""),
        ],
        "diagonal.cu": [
            ("diagonal_backward", "diagonal_scale_backward", "dlog_scale[j] +=", "dlog_scale[j] ="),
            ("diagonal_forward", "diagonal_scale", "j < d;", "j <= d;"),
            ("diagonal_inverse_backward", "diagonal_scale_backward", " + dlog_det[row]", ""),
        ],
        "drift.cu": [
            ("drift", "drift", "(1 + fabs", "(fabs"),
            ("drift", "drift", "i < n;", "i < n - 1;"),
        ],
        "gated.cu": [
            ("gated_norm_backward", "void gated_norm_backward", " - mean", ""),
            ("concat_elu_forward", "concat_elu_forward", "i < n;", "i <= n;"),
            ("concat_elu_backward", "concat_elu_backward", "positive + 1", "positive"),
            ("gated_norm_forward", "warp_sum", "value +=", "value ="),
            ("gated_norm_forward", "gated_norm_forward", "row < rows", "row <= rows"),
            ("gated_norm_backward", "gated_norm_add_sums", "dgain[j] +=", "dgain[j] ="),
        ],
        "inverse_matrix.cu": [
            ("update_inverse", "x = L^-1 P", "k + 1 + e / width", "k + 2 + e / width"),
            ("update_inverse", "update_inverse", "++*count", "*count = 1"),
            ("update_inverse", "matrix_norm(x, n)", "e < size", "e <= size"),
            ("update_inverse", "x = U^-1 x", "x[e] -=", "x[e] = -"),
            ("update_inverse", "find_pivot", "if (fabs(a[i * n + k]) > best)", "if (i == k)"),
        ],
        "linear.cu": [
            ("conv_forward", "add_bias_and_activate", " + bias[j]", ""),
            ("conv_forward", "add_bias_and_activate", "j < d;", "j <= d;"),
            ("conv_backward", "activate_backward", "dbias[j] +=", "dbias[j] ="),
        ],
        "logit.cu": [
            ("logit_inverse", "logit_inverse", " - log_slope;", ";"),
            ("logit_forward", "logit_forward", "sum += log_slope", "sum = log_slope"),
            ("logit_backward", "logit_backward", "j < d;", "j <= d;"),
            ("logit_inverse_backward", "logit_inverse_backward",
             " - dlog_det[row] * tanh(half)", ""),
        ],
        "masked_linear.cu": [
            ("masked_linear_backward", "long long first",
             "begin = middle + 1", "begin = middle + 2"),
            ("masked_linear_forward", "long long rows", "return reach[j]", "return reach[j] - 1"),
        ],
        "mixture.cu": [
            ("mixture_backward", "mixture_backward", "dx_j -= dmean", "dx_j = -dmean"),
            ("mixture_log_prob", "struct Sums", "total_joint + e", "total_joint"),
            ("mixture_log_prob", "mixture_log_prob", "j < d;", "j <= d;"),
        ],
        "optimizer.cu": [
            ("adam_step", "adam_step", " + epsilon", ""),
            ("adam_step", "adam_step", "i < n;", "i <= n;"),
            ("global_norm", "squares", "double(grads[i]) * grads[i]", "grads[i] * grads[i]"),
            ("global_norm", "root_of_sum", "sum += partial", "sum = partial"),
            ("ema_update", "ema_update", "average[i] +=", "average[i] ="),
        ],
        "random.cu": [
            ("uniform", "philox4x32", "key1 += 0xBB67AE85u;", ""),
            ("uniform", "philox4x32", "round < 10", "round <= 10"),
            ("normal", "draw", "block < blocks", "block <= blocks"),
        ],
        "rational_quadratic.cu": [
            ("rational_quadratic_inverse", "rational_quadratic_inverse", "sum -=", "sum = -"),
            ("rational_quadratic_forward", "rational_quadratic_forward", "j < d;", "j <= d;"),
            ("rational_quadratic_backward", "rational_quadratic_backward",
             "i < batch * d", "i <= batch * d"),
        ],
        "activation.cuh": [
            ("linear_backward", "activation_derivative", "y + 1", "y"),
            ("linear_forward", "activate", "leaky_slope * a", "a"),
        ],
        "common.cuh": [
            ("normal_log_prob", "block_sum", "w < warps", "w < warps - 1"),
            ("normal_log_prob", "block_sum", "value += ", "value = "),
            ("diagonal_backward", "column_sum", "half > 0", "half > 1"),
            ("diagonal_backward", "column_sum", "sums[me] += ", "sums[me] = "),
        ],
        "mixture.cuh": [
            ("autoregressive_inverse", "mixture_sample", "cumulated += ", "cumulated = "),
            ("autoregressive_inverse", "mixture_sample", "mean + exp", "exp"),
        ],
        "product.cuh": [
            ("linear_backward", "dweight += x^T da", "] += sum", "] = sum"),
            ("linear_forward", "forward_tile", "sum + bias[j]", "sum"),
            ("linear_forward", "forward_tile", "batch - row0", "batch + 1 - row0"),
            ("linear_backward", "dbias += column sums", "dbias[j] +=", "dbias[j] ="),
            ("linear_backward", "dbias += column sums", "w < 8", "w < 7"),
            ("linear_backward", "dweight += x^T da", "block / tiles_out", "block / tiles_in"),
            ("linear_backward", "dx = da weight^T", "block % tiles_in", "block % tiles_out"),
            ("linear_backward", "dbias += column sums", "block * 32", "block * 31"),
            ("linear_forward", "forward_tile",
             "column0 = (long long)blockIdx.y", "column0 = (long long)blockIdx.x"),
            ("masked_linear_backward", "dweight += x^T da",
             "if (row0 + row < mask.rows(j % mask.n))", ""),
        ],
        "rational_quadratic.cuh": [
            ("rational_quadratic_backward", "T dz = INVERSE", " + dlog_det * curvature", ""),
            ("rational_quadratic_forward", "RqBin find", "k < bins", "k < bins - 1"),
            ("rational_quadratic_inverse", "T xi_of_z", " - d1 / size * q", ""),
            ("rational_quadratic_backward", "void rq_sizes_backward", "k < index ? dedge :", ""),
            ("rational_quadratic_backward", "fabs(x) < bound",
             "p < 3 * bins - 1", "p < 3 * bins - 2"),
        ],
        "tile.cuh": [
            ("linear_forward", "add_tile_product", "sums[r][c] +=", "sums[r][c] ="),
            ("linear_forward", "add_tile_product", "k += DEPTH", "k += DEPTH + 1"),
            ("linear_backward", "for_each_result", "column < columns", "column <= columns"),
        ],
    }.items()
    for rest in faults
]  # fmt: skip


# Kernels that pass through every barrier of a file.
THROUGH = {
    "common.cuh": ("affine_forward", "batch_norm_backward"),
    "tile.cuh": ("linear_forward", "linear_backward"),
    "product.cuh": ("linear_backward",),
    "inverse_matrix.cu": ("update_inverse",),
    "autoregressive.cu": ("autoregressive_inverse", "autoregressive_inverse_backward"),
    "drift.cu": ("drift",),
}
BARRIERS = [
    Barrier(path.name, number)
    for path in sorted(CUDA.glob("*.cu*"))
    for number in range(path.read_text(encoding="utf-8").count(BARRIER))
]


def modules(backend) -> list[ModuleType]:
    """The modules of kernels/gpu that have CUDA sources."""
    kernels = [kernel for kernel in vars(backend.kernels).values() if inspect.isfunction(kernel)]
    found = [importlib.import_module(name) for name in {kernel.__module__ for kernel in kernels}]
    return [module for module in found if hasattr(module, "_family")]


@pytest.fixture
def backend():
    return get_backend("cupy", "float32")


@pytest.fixture
def plant(backend, tmp_path, monkeypatch) -> Callable[[str, Callable[[str], str]], None]:
    """plant(file, change) compiles the kernels with change(text) for the text of a CUDA source."""
    launch = importlib.import_module("npflow.kernels.gpu.launch")

    def plant(file: str, change: Callable[[str], str]) -> None:
        shutil.copytree(CUDA, tmp_path / "cuda")
        text = (CUDA / file).read_text(encoding="utf-8")
        changed = change(text)
        assert changed != text
        (tmp_path / "cuda" / file).write_text(changed, encoding="utf-8")
        monkeypatch.setattr(launch, "_SOURCES", tmp_path / "cuda")
        for module in modules(backend):  # what is compiled already is not used
            monkeypatch.setattr(module._family, "_functions", {})

    return plant


def symptom(backend, kernel: str, orders: tuple[str, ...] = ("forward",)) -> str | None:
    """What goes wrong in the first example call, in one of the orders of threads, that does.

    Found in a process of its own, since a fault may write anywhere; its end may be the symptom.
    """
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            text = call_examples(backend, kernel, orders)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(send, text.encode())
        os._exit(0)
    os.close(send)
    with open(receive) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text or (None if status == 0 else f"the process ended with status {status}")


def call_examples(backend, kernel: str, orders: tuple[str, ...]) -> str:
    for size in sorted(SIZES, key=lambda size: size != (37, 33)):  # most faults show there
        for arguments, order in product(examples(*size)[kernel], orders):
            with cuda_on_cpu.thread_order(order):
                found = compare(backend, kernel, arguments)
            cuda_on_cpu.check_memory()
            if not found.ok or counting.overruns:
                return "; ".join([str(found), *counting.overruns])
    return ""


def is_caught(backend, kernel: str, orders: tuple[str, ...] = ("forward",)) -> bool:
    """Whether an example call goes wrong, and not for want of a kernel."""
    found = symptom(backend, kernel, orders)
    assert found is None or "CompileException" not in found, found
    return found is not None


def test_every_source_has_a_fault():
    assert {fault.file for fault in FAULTS} == {
        path.name for path in CUDA.glob("*.cu*") if path.name != "arrays.cuh"
    }
    assert THROUGH.keys() == {barrier.file for barrier in BARRIERS}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_caught(fault, backend, plant):
    def change(text: str) -> str:
        head, after, tail = text.partition(fault.after)
        assert fault.old in tail
        return head + after + tail.replace(fault.old, fault.new, 1)

    plant(fault.file, change)
    assert is_caught(backend, fault.kernel)


@pytest.fixture
def one_block(backend, monkeypatch):
    """Launches by rows are of one block, which has to go round, and comes to its barriers again."""

    def launch(rows: int, width: int):
        return (1,), per_row(rows, width)[1]

    per_row = importlib.import_module("npflow.kernels.gpu.launch").per_row
    for module in modules(backend):
        if hasattr(module, "per_row"):
            monkeypatch.setattr(module, "per_row", launch)


@pytest.mark.parametrize(
    "kernel", sorted({kernel for names in THROUGH.values() for kernel in names})
)
def test_without_a_fault_nothing_is_caught(kernel, backend, one_block):
    assert symptom(backend, kernel, ORDERS) is None


@pytest.mark.parametrize("barrier", BARRIERS, ids=str)
def test_a_missing_barrier_is_caught(barrier, backend, plant, one_block):
    def change(text: str) -> str:
        parts = text.split(BARRIER)
        before, after = parts[: barrier.number + 1], parts[barrier.number + 1 :]
        return BARRIER.join(before) + BARRIER.join(after)

    plant(barrier.file, change)
    assert any(is_caught(backend, kernel, ORDERS) for kernel in THROUGH[barrier.file])


@pytest.mark.parametrize(
    ("kernel", "launcher", "parameter", "kind"),
    [
        ("actnorm_forward", "_apply_kernel", "c", np.int32),
        ("conv_forward", "_take_patches", "h", np.int64),
        ("linear_forward", "_forward", "activation", np.int64),
        ("adam_step", "_adam_step", "epsilon", np.float64),
        ("update_inverse", "_update", "epsilon", np.float32),
        ("uniform", "_uniform", "step", np.int64),
    ],
)
def test_a_scalar_of_the_wrong_width_is_caught(
    kernel, launcher, parameter, kind, backend, monkeypatch
):
    """By the stand-in device; test_gpu_contract.py compares the declarations."""
    module = importlib.import_module(getattr(backend.kernels, kernel).__module__)
    declared = inspect.getclosurevars(getattr(module, launcher)).nonlocals
    parameters = {**declared["parameters"], parameter: kind}
    monkeypatch.setattr(module._family, "_kernels", list(module._family._kernels))
    wrong = module._family.kernel(declared["name"], **parameters)
    monkeypatch.setattr(module, launcher, wrong)
    assert is_caught(backend, kernel)


@pytest.mark.parametrize(
    ("kernel", "launch", "wrong"),
    [
        ("affine_forward", "per_row", lambda rows, width: ((rows,), (min(width, 256),))),
        ("affine_inverse", "per_row", lambda rows, width: ((rows,), (2048,))),
        ("affine_backward", "per_column", lambda columns: ((columns // 8,), (8, 64))),
        ("moments", "per_column", lambda columns: ((-(-columns // 8),), (8, 48))),
        ("linear_forward", "per_tile", lambda rows, columns: ((rows // 64, 1), (256,))),
        ("linear_forward", "per_tile", lambda rows, columns: ((-(-rows // 64), 1), (128,))),
        ("linear_backward", "per_tile_backward", lambda batch, n_in, n_out: ((1,), (256,))),
        ("uniform", "per_element", lambda n: ((n // 256,), (256,))),
    ],
)
def test_a_wrong_launch_is_caught(kernel, launch, wrong, backend, monkeypatch):
    module = importlib.import_module(getattr(backend.kernels, kernel).__module__)
    assert hasattr(module, launch)
    monkeypatch.setattr(module, launch, wrong)
    assert is_caught(backend, kernel)
