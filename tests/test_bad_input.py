"""Every misuse and fault gets an error of a named type that says what to do; nothing is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npflow import checkpoint, datasets, dequantize
from npflow.backend import get_backend
from npflow.bijections import Coupling, Diagonal, Inverse, Logit, Memory, Permutation, Scale
from npflow.distributions import DiagonalNormal, StandardNormal
from npflow.elementwise import Additive, Affine
from npflow.errors import (
    BackendError,
    CheckpointError,
    ConfigurationError,
    DatasetError,
    DtypeError,
    NonFiniteError,
    NpflowError,
    ShapeError,
)
from npflow.flow import Flow
from npflow.models import nice, realnvp
from npflow.networks import MLP
from npflow.optim import Adam, WeightAverage
from npflow.training import CHECKPOINT, TrainingOptions, evaluate, fit

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(p for p in EXPERIMENTS.glob("*.py") if "\ndef main(" in p.read_text())
CALLS = ["log_prob", "nll_and_grad", "to_latent", "from_latent", "initialize", "update_statistics"]


def flow(**changes):
    return realnvp(**{"features": 3, "couplings": 2, "hidden": (4,), "backend": "numpy", **changes})


@pytest.fixture(params=["reference", "numpy"])
def backend(request):
    return request.param


# Arrays


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((5, 4)), ShapeError, r"shape \(5, 4\); expected \(batch, 3\)"),
        (np.zeros(3), ShapeError, r"shape \(3,\); expected \(batch, 3\)"),
        (np.zeros((2, 3, 1)), ShapeError, r"shape \(2, 3, 1\)"),
        (np.float64(1), ShapeError, r"shape \(\)"),
        (np.zeros((0, 3)), ShapeError, "empty batch; expected one row or more"),
        (np.zeros((2, 3), np.uint8), DtypeError, "dtype uint8; .* npflow.dequantize"),
        (np.zeros((2, 3), bool), DtypeError, "dtype bool; expected floating-point"),
        (np.zeros((2, 3), complex), DtypeError, "dtype complex128; expected floating-point"),
        (np.full((2, 3), "a"), DtypeError, "dtype <U1; expected floating-point"),
        (np.array([[0, np.nan, 0]]), NonFiniteError, "NaN or infinite values"),
        (np.array([[0, -np.inf, 0]]), NonFiniteError, "NaN or infinite values"),
        (np.array([[0, 1e300, 0]]), NonFiniteError, "float32.*remove or replace"),
    ],
)
def test_arrays(call, x, error, message, backend):
    model = flow(backend=backend, batch_norm=True)
    before = model.params.values.copy(), model.params.state.copy()
    with pytest.raises(error, match=message):
        getattr(model, call)(x)
    np.testing.assert_array_equal(model.params.values, before[0])
    np.testing.assert_array_equal(model.params.state, before[1])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ShapeError, r"needs a context of shape \(2, 5\)"),
        (np.zeros((2, 4)), ShapeError, r"context has shape \(2, 4\); expected \(batch, 5\)"),
        (np.zeros((3, 5)), ShapeError, "context has 3 rows for 2 rows"),
        (np.zeros((2, 5), int), DtypeError, "context has dtype int64"),
        (np.full((2, 5), np.nan), NonFiniteError, "context has NaN"),
    ],
)
def test_contexts(call, context, error, message):
    with pytest.raises(error, match=message):
        getattr(flow(context_features=5), call)(np.zeros((2, 3)), context)


@pytest.mark.parametrize("call", CALLS)
def test_a_context_for_an_unconditional_flow(call):
    with pytest.raises(ShapeError, match="takes no context"):
        getattr(flow(), call)(np.zeros((2, 3)), np.zeros((2, 5)))


@pytest.mark.parametrize("n", [0, -2])
def test_number_of_samples(n):
    model = flow()
    target = lambda x: (x.sum(1), np.ones_like(x))  # noqa: E731
    for call in (model.sample, model.sample_and_log_prob):
        with pytest.raises(ShapeError):
            call(n)
    with pytest.raises(ShapeError):
        model.reverse_kl_and_grad(target, n, seed=0)
    with pytest.raises(ShapeError, match="context has 3 rows for 4"):
        flow(context_features=1).sample(4, context=np.zeros((3, 1)))


def test_values_that_overflow_within_the_flow_name_the_layer(backend):
    """Finite input; layer 1's parameters are finite too, and e^200 is not in float32."""
    model = Flow(StandardNormal(3), Diagonal(3), backend=backend)
    model.params.value("bijection.layers.0.log_scale")[...] = 200.0
    for call in (model.log_prob, model.nll_and_grad):
        with (
            np.errstate(over="ignore"),
            pytest.raises(NonFiniteError, match=r"layer 0 \(Diagonal\) forward"),
        ):
            call(np.ones((2, 3)))


def test_a_parameter_that_is_not_finite_is_named():
    model = flow()
    model.params.value("bijection.layers.1.conditioner.biases.0")[2] = np.nan
    with pytest.raises(NonFiniteError, match=r"bijection\.layers\.1\.conditioner\.biases\.0 is"):
        model.log_prob(np.ones((2, 3)))


def test_data_outside_the_range_of_a_logit_names_the_layer(backend):
    model = flow(logit=Logit(1e-3, 256.0), backend=backend)
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match=r"layer 0 \(Logit\)"):
        model.log_prob(np.array([[1.0, 2.0, 400.0]]))


def test_a_target_that_is_not_finite():
    with pytest.raises(NonFiniteError, match="the reverse KL is nan"):
        flow().reverse_kl_and_grad(lambda x: (x[:, 0] * np.nan, x), 4, seed=0)


# Training


OPTIONS = TrainingOptions(epochs=1, batch_size=4)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.zeros((9, 4)), ShapeError, r"shape \(9, 4\); expected \(1 row or more, 3\)"),
        (np.zeros((0, 3)), ShapeError, r"shape \(0, 3\)"),
        (np.full((9, 3), np.inf), NonFiniteError, "data has NaN or infinite"),
        (np.full((9, 3), "a"), DtypeError, "dtype <U1"),
        (np.zeros((9, 3), complex), DtypeError, "complex128"),
    ],
)
def test_training_data(rows, error, message, tmp_path):
    good = np.zeros((9, 3))
    for arguments in ((rows, None), (good, rows)):
        with pytest.raises(error, match=message):
            fit(flow(), *arguments, options=OPTIONS, out=tmp_path / "run", progress_bar=False)
    with pytest.raises(error, match=message):
        evaluate(flow(), rows)
    assert not (tmp_path / "run").exists()


def test_training_contexts():
    rows, model = np.zeros((9, 3)), flow(context_features=2)
    with pytest.raises(ShapeError, match="needs a context"):
        fit(model, rows, options=OPTIONS, progress_bar=False)
    with pytest.raises(ShapeError, match="needs a context"):
        fit(model, rows, rows, options=OPTIONS, context=np.zeros((9, 2)), progress_bar=False)
    with pytest.raises(ShapeError, match="8 rows for 9"):
        fit(model, rows, options=OPTIONS, context=np.zeros((8, 2)), progress_bar=False)
    with pytest.raises(ShapeError, match="takes no context"):
        fit(flow(), rows, options=OPTIONS, context=np.zeros((9, 2)), progress_bar=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"epochs": -3}, "epochs is -3"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"warm_up_steps": -1}, "warm_up_steps is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; choose constant"),
        ({"decay": 0.0}, "decay is 0.0"),
        ({"patience": 0}, "patience is 0"),
        ({"memory": "forget"}, "unknown memory schedule 'forget'; choose store"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"max_norm": -1.0}, "max_norm is -1.0; expected a positive number or None"),
        ({"average": 1.0}, "average is 1.0"),
    ],
)
def test_training_options(options, message, tmp_path):
    """Refused before a run that is in the folder is touched."""
    rows = np.zeros((9, 3))
    fit(flow(), rows, options=OPTIONS, out=tmp_path, progress_bar=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match=message):
        fit(flow(), rows, options=TrainingOptions(**options), out=tmp_path, progress_bar=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_optimizer_options():
    params = flow().params
    for bad in ({"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}, {"learning_rate": -1.0}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(bad))}="):
            Adam(params, **bad)
    with pytest.raises(ConfigurationError, match="0 < decay < 1"):
        WeightAverage(params, 0.0)


# Models


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: flow(couplings=0), ConfigurationError, "couplings is 0; expected 1 or more"),
        (lambda: nice(3, couplings=-1), ConfigurationError, "couplings is -1"),
        (lambda: flow(features=1), ConfigurationError, "2 features or more, not 1"),
        (lambda: flow(masks="thirds"), ConfigurationError, "unknown masks 'thirds'; choose one of"),
        (lambda: flow(masks=((0, 3), (1,))), ConfigurationError, "different ones from 0 to 2"),
        (
            lambda: Coupling(3, (), Affine(3), MLP(1, (4,), 6)),
            ConfigurationError,
            "kept holds 0 indices for 3",
        ),
        (
            lambda: Coupling(3, (0, 1, 2), Affine(1), MLP(3, (4,), 2)),
            ConfigurationError,
            "kept holds 3 indices for 3",
        ),
        (lambda: flow(hidden=(4, 0)), ConfigurationError, r"layer widths are \(2, 4, 0, 2\)"),
        (lambda: flow(activation="gelu"), ConfigurationError, "unknown activation 'gelu'; choose"),
        (lambda: nice(3, prior="cauchy"), ConfigurationError, "unknown prior 'cauchy'; choose"),
        (lambda: flow(seed=-1), ConfigurationError, "seed is -1"),
        (lambda: flow(backend="jax"), BackendError, "unknown backend 'jax'; choose one of auto"),
        (lambda: flow(dtype="float16"), DtypeError, "float16; expected float32 or float64"),
        (lambda: flow(dtype="number"), DtypeError, "'number'; expected float32 or float64"),
        (lambda: Permutation((0, 0, 2)), ConfigurationError, "each index from 0"),
        (lambda: Permutation((1, 2, 3)), ConfigurationError, "each index from 0"),
        (lambda: Scale(0.0), ConfigurationError, "factor is 0.0"),
        (lambda: Scale(float("inf")), ConfigurationError, "factor is inf"),
        (lambda: Logit(0.5), ConfigurationError, "lam = 0.5"),
        (lambda: Logit(0.1, levels=0), ConfigurationError, "levels = 0"),
        (lambda: DiagonalNormal(3, scale=(1.0, 2.0)), ShapeError, "2 numbers for 3 features"),
        (lambda: DiagonalNormal(3, scale=-1.0), ShapeError, "positive and finite"),
        (
            lambda: Coupling(3, (0,), Affine(2), MLP(1, (4,), 3)),
            ConfigurationError,
            "maps 1 to 3; this coupling needs 1 to 4",
        ),
        (
            lambda: Coupling(3, (0,), Additive(2), MLP(2, (4,), 2)),
            ConfigurationError,
            "maps 2 to 2; this coupling needs 1 to 2",
        ),
        (lambda: datasets.toy("moons", 4, 0), DatasetError, "'moons'; choose one of two_moons"),
        (lambda: datasets.toy("rings", 0, 0), ConfigurationError, "n is 0"),
        (lambda: datasets.mnist("/nowhere"), DatasetError, "/nowhere lacks"),
    ],
)  # fmt: skip
def test_models_and_data(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("lam", [0.0, -0.1, 0.6])
def test_every_error_is_an_npflow_error(lam):
    with pytest.raises(NpflowError):
        Logit(lam)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("forget", "unknown memory schedule 'forget'; choose store, recompute or invert"),
        (Memory("invert", -1), "anchor_every is -1"),
        ("invert", r"layer 0 \(BatchNorm\) .*use memory='recompute' or 'store'"),
    ],
)
def test_memory(memory, message):
    with pytest.raises(ConfigurationError, match=message):
        flow(batch_norm=True).nll_and_grad(np.ones((4, 3)), memory=memory)


def test_a_batch_of_one_has_no_moments():
    with pytest.raises(ShapeError, match="use 2 rows or more"):
        flow(batch_norm=True).nll_and_grad(np.ones((1, 3)))


def test_a_model_that_cannot_be_saved_says_why(tmp_path):
    model = Flow(StandardNormal(3), Diagonal(np.int64(3)), backend="numpy")
    with pytest.raises(ConfigurationError, match="expected components, numbers, strings or tuples"):
        model.save(tmp_path / "flow")
    assert not list(tmp_path.iterdir())


# Files


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "flow.safetensors"
    flow().save(path)
    return path


def rewrite(path, change):
    """Replace the file's arrays and metadata by what change makes of them, checksum included."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    arrays = load_file(path)
    change(arrays, metadata)
    metadata["crc32"] = checkpoint._checksum(arrays, metadata["header"])
    save_file(arrays, path, metadata)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_files(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"is damaged or not a safetensors file.*restore it"):
        Flow.load(saved)


def test_a_file_with_any_bit_changed_is_refused(saved):
    """In the arrays, the header or the lengths: a silent change would be a silent wrong model."""
    content = saved.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Flow.load(saved)


def test_missing_and_foreign_files(saved, tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        Flow.load(tmp_path / "other")
    with pytest.raises(CheckpointError, match="there is no file"):
        Flow.load(tmp_path)
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"another program.*expected 'npflow.flow'"):
        Flow.load(tmp_path / "foreign")
    fit(flow(), np.zeros((9, 3)), options=OPTIONS, out=tmp_path, progress_bar=False)
    with pytest.raises(CheckpointError, match=r"'npflow\.training'; expected 'npflow\.flow'"):
        Flow.load(tmp_path / CHECKPOINT)
    shutil.copy(saved, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"'npflow\.flow'; expected 'npflow\.training'"):
        fit(flow(), np.zeros((9, 3)), options=OPTIONS, out=tmp_path, resume=True)
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match="is damaged or not a safetensors file"):
        Flow.load(tmp_path / "pickle")


def test_a_later_version(saved):
    rewrite(saved, lambda arrays, metadata: metadata.update(version="2"))
    with pytest.raises(CheckpointError, match="has version 2; this npflow reads version 1"):
        Flow.load(saved)


def test_files_that_do_not_fit_together(saved):
    def edit(old, new):
        return lambda arrays, metadata: metadata.update(
            header=metadata["header"].replace(old, new, 1)
        )

    original = saved.read_bytes()
    changes = [
        (edit('"Coupling"', '"Popen"'), CheckpointError, "component 'Popen' that is not known"),
        (edit('"kept"', '"keep"'), CheckpointError, "configuration of Coupling does not fit"),
        (edit('"hidden": [4]', '"hidden": [5]'), CheckpointError, "has shape"),
        (lambda arrays, _: arrays.popitem(), CheckpointError, "do not fit the model: missing"),
        (lambda arrays, _: arrays.update(a=np.zeros(1)), CheckpointError, r"unknown \['a'\]"),
    ]
    for change, error, message in changes:
        saved.write_bytes(original)
        rewrite(saved, change)
        with pytest.raises(error, match=message):
            Flow.load(saved, "numpy")
    saved.write_bytes(original)
    rewrite(saved, lambda arrays, metadata: None)
    Flow.load(saved, "numpy")  # the helper itself does no harm


def test_loading_into_a_store_changes_nothing_if_it_does_not_fit():
    params = flow().params
    before = params.values.copy()
    arrays = {name: array + 1 for name, array in params.to_numpy().items()}
    arrays[next(reversed(arrays))] = np.zeros((7, 7))
    with pytest.raises(CheckpointError):
        params.load(arrays)
    np.testing.assert_array_equal(params.values, before)


def fill_disk(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_keeps_the_older_file(saved, monkeypatch):
    before = saved.read_bytes()
    fill_disk(monkeypatch)
    with pytest.raises(CheckpointError, match=r"No space left.*before is unchanged") as caught:
        flow(seed=5).save(saved)
    assert str(saved) in str(caught.value)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_file_is_replaced_and_not_written_over(saved, tmp_path):
    """A second name of the older file keeps its content: no reader ever sees half of either."""
    before = saved.read_bytes()
    os.link(saved, tmp_path / "older")
    flow(seed=5).save(saved)
    assert (tmp_path / "older").read_bytes() == before != saved.read_bytes()


def test_a_device_that_is_full(tmp_path):
    """A real one: every write to /dev/full fails for want of space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = tmp_path / "flow.safetensors"
    (tmp_path / "flow.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left"):
        flow().save(path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_training(monkeypatch, tmp_path):
    """The checkpoint of the last epoch that was saved stays; resuming ends as if nothing was."""
    rows = np.random.default_rng(0).normal(size=(20, 3))
    options = TrainingOptions(epochs=3, batch_size=4)
    expected = flow()
    fit(expected, rows, rows, options=options, progress_bar=False)

    def fill(epoch, _):
        if epoch == 2:
            fill_disk(monkeypatch)

    with pytest.raises(CheckpointError, match="No space"):
        fit(flow(), rows, rows, options=options, out=tmp_path, on_epoch=fill, progress_bar=False)
    monkeypatch.undo()
    resumed = flow()
    fit(resumed, rows, rows, options=options, out=tmp_path, resume=True, progress_bar=False)
    np.testing.assert_array_equal(resumed.params.values, expected.params.values)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "flow", tmp_path / "none" / "flow", tmp_path):
        with pytest.raises(CheckpointError, match="cannot write"):
            flow().save(path)
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        fit(flow(), np.zeros((9, 3)), options=OPTIONS, out=tmp_path / "file" / "run")
    assert os.listdir(tmp_path) == ["file"]


# Scripts


def script(path, *arguments, folder):
    environment = os.environ | {"MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, path, *arguments], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def has_no_gpu():
    try:
        get_backend("cupy")
    except BackendError:
        return True
    return False


MISUSES = {
    "unknown backend": (["--backend", "jax"], "jax"),
    "unknown dtype": (["--dtype", "float16"], "float16"),
    "unknown option": (["--epoch", "3"], "--epoch"),
    "negative epochs": (["--epochs", "-3"], "--epochs is -3; expected 1 or more"),
    "negative seed": (["--seed", "-1"], "--seed is -1; expected 0 or more"),
    "unwritable out": (["--smoke", "--out", "file/run"], "cannot make the folder file/run"),
    "nothing to resume": (
        ["--smoke", "--resume", "--out", "run"],
        "nothing to resume in run|cannot be resumed",
    ),
}
if has_no_gpu():
    MISUSES["no GPU"] = (["--smoke", "--backend", "cupy", "--out", "run"], "npflow.cuda12|finds no")


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_misused_scripts(path, misuse, tmp_path):
    arguments, message = MISUSES[misuse]
    (tmp_path / "file").write_text("")
    result = script(path, *arguments, folder=tmp_path)
    assert result.returncode == 2, result
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.stderr
    left = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert left - {"command.txt"} == {"file"}


def test_an_unknown_data_set(tmp_path):
    result = script(EXPERIMENTS / "toy_realnvp.py", "--dataset", "moons", folder=tmp_path)
    assert result.returncode == 2, result
    assert "moons" in result.stderr
    assert "two_moons" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_integer_images_are_welcome_once_dequantized():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    model = flow()
    model.log_prob(dequantize(model.backend, images, seed=0, step=0))
    Inverse(Diagonal(3))  # and a correct component raises nothing
