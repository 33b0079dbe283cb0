"""Training on a GPU, or on the stand-in device of cuda_on_cpu: the losses, bits, checkpoints and
errors are those of the CPU, and a step copies nothing.
"""

import gc
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from gpu import ON_GPU, tool

from npflow import datasets, get_backend, models, training
from npflow.errors import NonFiniteError, OutOfMemoryError
from npflow.flow import Flow
from npflow.training import CHECKPOINT, METRICS, Data, Trainer, TrainingOptions, evaluate, fit

pytestmark = ON_GPU

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if "\ndef main(" in p.read_text())
STEPS = 20  # whose losses are compared
# Relative, between two backends; 6e-7 and 1e-14 are the largest found on the stand-in device.
LOSS = {"float32": 1e-5, "float64": 1e-11}
PROBABILITY = {"float32": 1e-5, "float64": 1e-13}

both = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture
def pool():
    """CuPy's memory pool, with nothing in reserve; without a limit at the end."""
    pool = get_backend("cupy").xp.get_default_memory_pool()
    empty(pool)
    yield pool
    pool.set_limit(size=0)


def empty(pool):
    gc.collect()
    pool.free_all_blocks()


def pixels(rows, *shape, levels=256):
    return np.random.default_rng(0).integers(0, levels, (rows, *shape), dtype=np.uint8)


def assert_close(losses, expected, dtype):
    np.testing.assert_allclose(losses, expected, rtol=LOSS[dtype], atol=0)


# Experiments


class EnoughError(Exception):
    """Ends a script after the last loss that is wanted."""


def losses_of(script, *arguments, monkeypatch, folder):
    """Of the first steps of likelihood and of reverse KL, up to STEPS of what comes last."""
    losses = {"train_step": [], "reverse_kl_and_grad": []}
    last = "reverse_kl_and_grad" if "import reverse_kl" in script.read_text() else "train_step"

    def record(owner, name):
        original = getattr(owner, name)

        def step(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            losses[name].append(float(loss))
            if name == last and len(losses[name]) == STEPS:
                raise EnoughError
            return loss

        monkeypatch.setattr(owner, name, step)

    record(Trainer, "train_step")
    record(Flow, "reverse_kl_and_grad")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke", "--out", str(folder), *arguments])
    with pytest.raises(EnoughError):
        runpy.run_path(str(script), run_name="__main__")
    return [values[:STEPS] for values in losses.values() if values]


@both
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_experiment_has_the_losses_of_the_cpu(script, dtype, monkeypatch, tmp_path):
    runs = []
    for backend in ("numpy", "cupy"):
        with monkeypatch.context() as patch:
            arguments = ["--backend", backend, "--dtype", dtype]
            runs.append(losses_of(script, *arguments, monkeypatch=patch, folder=tmp_path / backend))
    expected, found = runs
    assert {len(losses) for losses in expected} == {STEPS}
    assert len(set(expected[0])) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, dtype)


def run(script, folder, *arguments, **environment):
    """`--smoke --backend cupy` in a process of its own."""
    return subprocess.run(
        [sys.executable, script, "--backend", "cupy", "--smoke", "--out", folder, *arguments],
        env=os.environ | {"MPLBACKEND": "agg"} | environment, capture_output=True, text=True,
    )  # fmt: skip


@both
def test_an_experiment_from_start_to_end(dtype, tmp_path):
    result = run(FOLDER / "mnist_realnvp.py", tmp_path, "--dtype", dtype)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["backend"], summary["dtype"]) == ("cupy", dtype)
    assert math.isfinite(summary["test_bits_per_dim"])
    first, last = map(json.loads, (tmp_path / METRICS).read_text().splitlines())
    assert last["train_nll"] < first["train_nll"]
    assert {"samples.png", "model.safetensors", CHECKPOINT} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_experiment_from_start_to_end(script, tmp_path):
    result = run(script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["backend"] == "cupy"
    assert list(tmp_path.glob("*.png"))


def test_an_experiment_without_enough_memory_ends_with_one_message(tmp_path):
    if tool() is None:
        pytest.skip("the memory of a GPU is what it is; that of the stand-in device can be chosen")
    result = run(FOLDER / "toy_realnvp.py", tmp_path, CUDA_ON_CPU_MEMORY="60000")
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("toy_realnvp.py: ")
    assert "Out of memory allocating" in result.stderr
    assert "Traceback" not in result.stderr


# Other models, which no smoke run has


def small(name, backend="cupy", **options):
    """A small flow and integer rows for it."""
    build, arguments, shape = {
        "realnvp": (models.realnvp, {"features": 6, "couplings": 3, "hidden": (16,)}, (6,)),
        "maf": (models.maf, {"features": 6, "layers": 2, "hidden": (16, 16)}, (6,)),
        "made": (models.made, {"features": 6, "hidden": (16,), "output": "mixture"}, (6,)),
        "spline": (models.spline_coupling, {"features": 6, "couplings": 3, "bound": 6.0}, (6,)),
        "glow": (models.glow, {"shape": (4, 4, 1), "steps": 2, "width": 4}, (4, 4, 1)),
        "multi-scale": (
            models.realnvp_multiscale,
            {"shape": (4, 4, 1), "checkerboards": (2, 2), "channels": (1, 0), "width": 4},
            (4, 4, 1),
        ),
    }[name]
    flow = build(**arguments, **options, backend=backend)
    return flow, pixels(64, *shape, levels=4 if len(shape) == 1 else 256)


def train(flow, rows, validation=None, epochs=2, out=None, resume=False, **options):
    options = TrainingOptions(**{"epochs": epochs, "batch_size": 8} | options)
    return fit(
        flow, rows, validation, options=options, out=out, resume=resume, progress_bar=False
    )  # fmt: skip


@both
@pytest.mark.parametrize("network", ["maf", "realnvp"])
def test_batch_norm_is_trained_as_on_the_cpu(network, dtype):
    """Biases before batch normalisation have a gradient that is zero but for rounding, and Adam
    divides gradients by their size. With a larger epsilon rounding stays as small as it is.
    """
    losses = []
    for backend in ("numpy", "cupy"):
        flow, rows = small(network, backend, batch_norm=True, dtype=dtype)
        values = flow.params.values.copy()
        trainer = Trainer(flow, TrainingOptions(learning_rate=0.1), len(rows))
        trainer.adam.epsilon = 1.0
        data = Data.on(flow, rows)
        batches = (data.batch(flow, slice(None), *trainer.noise()) for _ in range(STEPS))
        losses.append([float(trainer.train_step(*batch)) for batch in batches])
        losses[-1].append(trainer.validate(data, data))  # with statistics over the rows
        assert abs(flow.params.values - values).max() > 0.01
    assert_close(losses[1], losses[0], dtype)


@both
@pytest.mark.parametrize("name", ["glow", "multi-scale"])
def test_memory_schedules_of_image_flows_agree(name, dtype):
    """Recomputing gives the same bits. Walking back by inversion has rounding errors of its own."""
    flow, rows = small(name, dtype=dtype)
    x, _ = Data.on(flow, rows).batch(flow, slice(0, 8), 0, 0, 0)
    flow.initialize(x)
    results = {}
    for memory in ("store", "recompute", "invert"):
        loss = flow.nll_and_grad(x, memory=memory)
        results[memory] = loss, flow.backend.to_numpy(flow.params.grads).copy()
    loss, grads = results["store"]
    assert results["recompute"][0] == results["invert"][0] == loss
    np.testing.assert_array_equal(results["recompute"][1], grads)
    error = np.abs(results["invert"][1] - grads).max() / np.abs(grads).max()
    assert error < {"float32": 1e-3, "float64": 1e-12}[dtype]


# Bits and checkpoints


@pytest.mark.parametrize("order", [None, "reverse", "random:5"])
@pytest.mark.parametrize("name", ["realnvp", "glow"])
def test_the_same_seed_gives_the_same_bits(name, order):
    runs = []
    for context in (nullcontext(), nullcontext() if order is None else thread_order(order)):
        with context:
            flow, rows = small(name)
            history = train(flow, rows, rows[:16], epochs=1, max_norm=1.0, average=0.9)
        runs.append((flow.params.values.tobytes(), history[0]["train_nll"]))
    assert runs[0] == runs[1]


def thread_order(order):
    if tool() is None:
        pytest.skip("a GPU has its own order of threads; that of the stand-in device can be chosen")
    return tool().thread_order(order)


@both
@pytest.mark.parametrize("there", ["numpy", "cupy"])
def test_a_flow_written_on_one_backend_is_read_on_the_other(there, dtype, tmp_path):
    here = {"numpy": "cupy", "cupy": "numpy"}[there]
    flow, rows = small("realnvp", here, batch_norm=True, dtype=dtype)
    train(flow, rows, epochs=1)
    flow.save(tmp_path / "flow")
    read = Flow.load(tmp_path / "flow", backend=there)
    assert (read.backend.name, read.backend.dtype) == (there, dtype)
    ours, theirs = flow.params.to_numpy(), read.params.to_numpy()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    log_probs = [f.backend.to_numpy(f.log_prob(f.backend.array(rows))) for f in (flow, read)]
    np.testing.assert_allclose(log_probs[1], log_probs[0], rtol=PROBABILITY[dtype])


EVERYTHING = {
    "average": 0.9, "schedule": "cosine", "warm_up_steps": 7, "max_norm": 0.5, "weight_decay": 0.01,
}  # fmt: skip


def records(folder):
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def stop_in_step(step, backend, monkeypatch, out, **options):
    """Ctrl-C in that step of a run."""
    original = Trainer.train_step

    def train_step(self, *batch):
        if self.progress.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", train_step)
        flow, rows = small("realnvp", backend, dtype=options.pop("dtype"))
        train(flow, rows, rows[:16], out=out, **options)


@both
@pytest.mark.parametrize(("first", "second"), [("cupy", "numpy"), ("numpy", "cupy")])
def test_a_run_goes_on_on_the_other_backend(first, second, dtype, monkeypatch, tmp_path):
    flow, rows = small("realnvp", "numpy", dtype=dtype)
    expected = train(flow, rows, rows[:16], epochs=3, **EVERYTHING)
    stop_in_step(13, first, monkeypatch, tmp_path, epochs=3, dtype=dtype, **EVERYTHING)
    flow, rows = small("realnvp", second, dtype=dtype)
    found = train(flow, rows, rows[:16], epochs=3, out=tmp_path, resume=True, **EVERYTHING)
    for name in ("train_nll", "validation_nll"):
        assert_close([r[name] for r in found], [r[name] for r in expected], dtype)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(monkeypatch, tmp_path):
    flow, rows = small("realnvp")
    train(flow, rows, rows[:16], epochs=3, out=tmp_path / "whole", **EVERYTHING)
    stopped = tmp_path / "stopped"
    stop_in_step(13, "cupy", monkeypatch, stopped, epochs=3, dtype="float32", **EVERYTHING)
    resumed, _ = small("realnvp")
    train(resumed, rows, rows[:16], epochs=3, out=stopped, resume=True, **EVERYTHING)
    assert resumed.params.values.tobytes() == flow.params.values.tobytes()
    assert records(stopped) == records(tmp_path / "whole")


# Copies, launches and allocations

CLIPPED = {"max_norm": 1.0, "average": 0.999}
# One step with a batch of 8 rows of 8 bits: kernel launches, cuBLAS products.
COUNTS = {
    "realnvp of 8 couplings": ("wide", {}, 108, 24),
    "the same, clipped and averaged": ("wide", CLIPPED, 112, 24),
    "maf": ("maf", CLIPPED, 36, 0),
    "made": ("made", CLIPPED, 21, 0),
    "spline": ("spline", CLIPPED, 52, 0),
    "glow": ("glow", CLIPPED, 202, 57),
    "glow, invert": ("glow", CLIPPED | {"memory": "invert"}, 295, 76),
}


@pytest.mark.parametrize("row", COUNTS)
def test_a_training_step_launches_and_copies(row, device_counters, pool):
    name, options, launches, products = COUNTS[row]
    if name == "wide":
        flow = models.realnvp(784, couplings=8, hidden=(64, 64), backend="cupy")
        rows = pixels(64, 784)
    else:
        flow, rows = small(name)
    data = Data.on(flow, rows)
    trainer = Trainer(flow, TrainingOptions(batch_size=8, **options), len(rows))
    order = flow.backend.xp.arange(len(rows))
    used = set()
    for k in range(8):
        with device_counters() as counted:
            x, context = data.batch(flow, order[8 * k : 8 * k + 8], *trainer.noise())
            trainer.train_step(x, context)
        assert counted["h2d"] == counted["d2h"] == 0
        if k == 2:
            # The pool takes any free block that fits, so that now and then only fragments are left.
            flow.backend.xp.empty(2**20, np.uint8)
        elif k > 2:
            assert counted["device_mallocs"] == 0
            used.add(pool.used_bytes())
    assert len(used) == 1
    found = counted["launches"], sum(counted["library_calls"].values())
    assert found == (launches, products), counted["kernels"]


@pytest.mark.parametrize("options", [{}, CLIPPED])
@pytest.mark.parametrize("steps", [10, 100])
def test_copies_of_an_epoch_do_not_grow_with_its_steps(steps, options, device_counters):
    """To the device: the data and their order. To the host: whether the data are finite; and at the
    end the loss, for the record and its check, the norm, and whether the parameters are finite.
    """
    flow = models.realnvp(2, couplings=2, hidden=(4,), backend="cupy")
    rows = datasets.toy("two_moons", 4 * steps, 0)
    with device_counters() as counted:
        train(flow, rows, epochs=1, batch_size=4, **options)
    assert (counted["h2d"], counted["d2h"]) == (2, 5)


# Faults


@pytest.mark.parametrize(
    ("max_norm", "shown", "steps"),
    [(None, False, "1 to 8"), (1.0, False, "1 to 8"), (1.0, True, "5 to 6")],
)
def test_a_gradient_that_is_not_finite_is_found_at_the_next_look(
    max_norm, shown, steps, monkeypatch, capfd
):
    original = Flow.loss_and_grad

    def loss_and_grad(self, *arguments):
        loss = original(self, *arguments)
        loss_and_grad.calls += 1
        if loss_and_grad.calls == 5:
            self.params.grad("bijection.layers.1.map.bounds")[0] = np.inf
        return loss

    loss_and_grad.calls = 0
    monkeypatch.setattr(Flow, "loss_and_grad", loss_and_grad)
    monkeypatch.setattr(training, "FETCH_EVERY", 2)
    flow, rows = small("realnvp")
    options = TrainingOptions(batch_size=8, max_norm=max_norm)
    # Without clipping the update makes a parameter infinite; with it there is no update.
    message = (
        "parameter .* is not finite" if max_norm is None else "the loss or the gradient's norm"
    )
    with pytest.raises(NonFiniteError, match=f"training steps {steps}: {message}"):
        fit(flow, rows, options=options, progress_bar=shown)


def test_memory_that_ends_in_training_is_an_error_that_says_what_needs_less(pool, tmp_path):
    """Under a limit that storing exceeds and recomputing does not. The last checkpoint stays."""
    rows = datasets.toy("two_moons", 2048, 0)

    def run(memory, limit=0, **arguments):
        """The last epoch of two under that limit."""
        pool.set_limit(size=0)
        empty(pool)
        flow = models.realnvp(2, couplings=8, hidden=(128,), backend="cupy")
        options = TrainingOptions(epochs=2, batch_size=1024, memory=memory)

        def set_limit(epoch, flow):
            if epoch == 1:
                pool.free_all_blocks()
                pool.set_limit(size=limit)

        fit(flow, rows, options=options, on_epoch=set_limit, progress_bar=False, **arguments)
        return flow.backend.to_numpy(flow.params.values), pool.total_bytes()

    (_, stored), (expected, recomputed) = run("store"), run("recompute")
    assert recomputed < 0.8 * stored
    limit = (recomputed + stored) // 2
    np.testing.assert_array_equal(run("recompute", limit)[0], expected)
    with pytest.raises(OutOfMemoryError) as caught:
        run("store", limit, out=tmp_path)
    assert type(caught.value.__cause__) is pool_error()
    message = str(caught.value)
    assert message.startswith("a batch of 1024 rows is too large: Out of memory allocating ")
    assert message.endswith(
        "memory='store' is in use; use memory='recompute' or memory='invert' or a batch_size "
        "below 1024"
    )
    assert len(records(tmp_path)) == 1
    del caught
    np.testing.assert_array_equal(run("store", out=tmp_path, resume=True)[0], expected)


def pool_error():
    return get_backend("cupy").xp.cuda.memory.OutOfMemoryError


def test_memory_that_ends_in_evaluation_is_an_error(pool):
    flow, rows = small("realnvp")
    data = Data.on(flow, np.tile(rows, (160, 1)))
    expected = evaluate(flow, data, batch_size=len(data.rows)).mean()
    empty(pool)
    pool.set_limit(size=pool.total_bytes() + 300_000)
    with pytest.raises(OutOfMemoryError, match=r"a batch of 10240 rows .* below 10240$"):
        evaluate(flow, data, batch_size=len(data.rows))
    empty(pool)
    assert evaluate(flow, data, batch_size=256).mean() == pytest.approx(expected, rel=0.01)
