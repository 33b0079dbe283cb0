"""A run that is stopped anywhere and resumed leaves the same bits as one that never stopped.

Run as a script, this file is the run that the tests kill: test_resume.py FOLDER [KILL_AT_WRITE].
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from npflow.errors import CheckpointError, ConfigurationError
from npflow.flow import Flow
from npflow.models import realnvp
from npflow.training import CHECKPOINT, METRICS, Trainer, TrainingOptions, fit

ROWS, BATCH, EPOCHS = 80, 16, 4
STEPS = EPOCHS * (ROWS // BATCH)

# Every part of the state: optimizer, averages, stored statistics, schedule, patience, noise.
RUNS = {
    "plain": ({}, {}),
    "everything": (
        {"batch_norm": True},
        {"average": 0.9, "schedule": "cosine", "warm_up_steps": 7, "max_norm": 0.5,
         "weight_decay": 0.01, "patience": 2},
    ),
    "float64": ({"dtype": "float64"}, {"schedule": "exponential", "decay": 0.8, "average": 0.8}),
    "recompute": ({"batch_norm": True}, {"memory": "recompute"}),
    "invert": ({"dtype": "float64"}, {"memory": "invert"}),
}  # fmt: skip


class Death(BaseException):
    """Ends a run as a kill does: no handler of npflow's writes anything after it."""


def data():
    """Integer rows, so that dequantization noise is part of the run."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 8, (ROWS, 4)), rng.integers(0, 8, (30, 4))


def run(out, name="plain", backend="numpy", resume=False, epochs=EPOCHS, **changes):
    model, options = RUNS[name]
    flow = realnvp(4, couplings=3, hidden=(16,), backend=backend, seed=2, **model)
    fit(
        flow,
        *data(),
        options=TrainingOptions(**{"epochs": epochs, "batch_size": BATCH, **options, **changes}),
        out=out,
        resume=resume,
        progress_bar=False,
    )
    return flow


def bits(flow):
    """The flow's final weights and statistics."""
    return flow.params.values.tobytes(), flow.params.state.tobytes()


def records(out):
    """metrics.jsonl without the wall time."""
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def contents(out):
    """Every array of the checkpoint as bytes, and its counters without the wall time."""
    with safe_open(out / CHECKPOINT, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress = json.loads(file.metadata()["header"])["progress"]
    assert np.any(arrays["adam.v"] > 0)
    stored = {name: (str(a.dtype), a.tobytes()) for name, a in arrays.items()}
    return stored, {key: value for key, value in progress.items() if key != "seconds"}


def assert_same_run(out, expected):
    assert records(out) == records(expected)
    assert contents(out) == contents(expected)
    assert {file.name for file in out.iterdir()} == {METRICS, CHECKPOINT}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """name, backend -> the folder and the final weights of a run that was never stopped."""
    made = {}

    def get(name, backend):
        if (name, backend) not in made:
            out = tmp_path_factory.mktemp("uninterrupted")
            made[name, backend] = out, bits(run(out, name, backend))
        return made[name, backend]

    return get


def die_at(monkeypatch, method, calls):
    """Trainer.method raises Death instead of its calls-th call."""
    original, count = getattr(Trainer, method), 0

    def wrapped(*arguments):
        nonlocal count
        count += 1
        if count == calls:
            raise Death
        return original(*arguments)

    monkeypatch.setattr(Trainer, method, wrapped)


def resume_to_the_end(out, name, backend, monkeypatch, events):
    """Start, die as events say, resume each time, and end. Returns the final weights."""
    resume = False
    for method, calls in events:
        with monkeypatch.context() as patch:
            die_at(patch, method, calls)
            with pytest.raises(Death):
                run(out, name, backend, resume)
        resume = True
    return bits(run(out, name, backend, resume))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("name", RUNS)
def test_dying_at_any_step_changes_nothing(name, backend, uninterrupted, monkeypatch, tmp_path):
    expected, weights = uninterrupted(name, backend)
    # In the first epoch, later, between the metrics line and its checkpoint, and in validation.
    events = [("train_step", 3), ("train_step", 8), ("save", 1), ("validate", 1)]
    assert resume_to_the_end(tmp_path, name, backend, monkeypatch, events) == weights
    assert_same_run(tmp_path, expected)


def test_the_runs_above_train(uninterrupted):
    """Otherwise equal bits would say little."""
    for name in RUNS:
        lines = records(uninterrupted(name, "numpy")[0])
        assert len({line["train_nll"] for line in lines}) == len(lines) > 1
        assert (len(lines) < EPOCHS) == (name == "everything")  # out of patience
    assert records(uninterrupted("invert", "numpy")[0])[-1]["drift"] > 0


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_interrupts_within_an_epoch(name, uninterrupted, monkeypatch, tmp_path):
    """Ctrl-C ends the step, writes a checkpoint in the middle of the epoch, and raises."""
    expected, weights = uninterrupted(name, "numpy")
    original, stops = Trainer.train_step, iter([2, 3, 8, 10, 14])
    stop = next(stops)

    def interrupted_step(self, *batch):
        nonlocal stop
        if stop is not None and self.progress.step == stop - 1:
            stop = next(stops, None)
            signal.raise_signal(signal.SIGINT)
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    steps = []
    while stop is not None:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, name, resume=bool(steps))
        steps.append(contents(tmp_path)[1]["step"])
    assert steps == [2, 3, 8, 10, 14]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert bits(run(tmp_path, name, resume=True)) == weights
    assert_same_run(tmp_path, expected)


def test_a_second_interrupt_is_not_held_up(monkeypatch, tmp_path):
    """The first checkpoint stays whole, and no temporary file is left beside it."""
    original, fsync = Trainer.train_step, os.fsync

    def interrupted_step(self, *batch):
        if self.progress.step == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, *batch)

    def interrupted_fsync(descriptor):
        if (tmp_path / METRICS).exists():
            signal.raise_signal(signal.SIGINT)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted_step)
        patch.setattr(os, "fsync", interrupted_fsync)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {METRICS, CHECKPOINT}
    run(tmp_path, resume=True)
    assert len(records(tmp_path)) == EPOCHS


def test_more_epochs_continue_a_finished_run(uninterrupted, tmp_path):
    expected, weights = uninterrupted("plain", "numpy")
    run(tmp_path, epochs=2)
    assert bits(run(tmp_path, resume=True)) == weights
    assert_same_run(tmp_path, expected)


def test_resuming_a_finished_run_gives_its_best_weights(uninterrupted, tmp_path):
    _, weights = uninterrupted("everything", "numpy")
    run(tmp_path, "everything")
    assert bits(run(tmp_path, "everything", resume=True)) == weights


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("plain", {"learning_rate": 0.01}, "learning_rate=0.001, not 0.01"),
        ("plain", {"seed": 1}, "seed=0, not 1"),
        ("plain", {"average": 0.5}, "average=None, not 0.5"),
        ("plain", {"memory": "invert"}, "memory='store', not 'invert'"),
        ("plain", {"schedule": "cosine"}, "schedule='constant', not 'cosine'"),
        ("everything", {"epochs": 9}, "epochs=4, not 9"),  # the cosine depends on it
    ],
)
def test_other_options_are_refused(name, changes, message, tmp_path):
    run(tmp_path, name)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, name, resume=True, **changes)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        ({"hidden": (17,)}, ROWS, "another model"),
        ({"couplings": 2}, ROWS, "another model"),
        ({"dtype": "float64"}, ROWS, "does not fit this run's float64"),
        ({}, ROWS - 1, f"{ROWS} rows, this run has {ROWS - 1}"),
    ],
)
def test_another_model_or_data_is_refused(model, rows, message, tmp_path):
    run(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    train, validation = data()
    configuration = {"couplings": 3, "hidden": (16,), "backend": "numpy", "seed": 9, **model}
    flow = realnvp(4, **configuration)
    values = flow.params.values.copy()
    options = TrainingOptions(epochs=EPOCHS + 1, batch_size=BATCH)
    with pytest.raises(CheckpointError, match=message):
        fit(flow, train[:rows], validation, options=options, out=tmp_path, resume=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    np.testing.assert_array_equal(flow.params.values, values)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "header bit", "text"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    run(tmp_path)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-100] ^= 4
    elif damage == "header bit":
        content[content.index(b"best_nll") + 14] ^= 1  # a digit of the number becomes another
    changed = {"truncated": content[:-7], "emptied": b"", "text": b"not a checkpoint " * 9}
    path.write_bytes(changed.get(damage, content))
    metrics = (tmp_path / METRICS).read_bytes()
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        run(tmp_path, resume=True, epochs=EPOCHS + 1)
    assert str(path) in str(caught.value)
    assert (tmp_path / METRICS).read_bytes() == metrics


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="give out"):
        run(None, resume=True)


# Real processes, real signals.


LONG = 24  # epochs


def long_run(out, resume):
    """A run of a second or two: long enough to be killed in many places."""
    flow = realnvp(4, couplings=6, hidden=(64, 64), batch_norm=True, backend="numpy", seed=1)
    rows = np.random.default_rng(5).integers(0, 8, (1000, 4))
    options = TrainingOptions(
        epochs=LONG, batch_size=50, average=0.95, schedule="cosine", patience=LONG
    )
    fit(flow, rows, rows[:200], options=options, out=out, resume=resume, progress_bar=False)
    flow.save(out / "model.safetensors")


def kill_at_write(number):
    """SIGKILL this process with half of its number-th file written."""
    count = 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count == number:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync


def start(out, *arguments):
    command = [sys.executable, __file__, str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors


def epochs_done(out):
    return len((out / METRICS).read_text().splitlines()) if (out / METRICS).is_file() else 0


def wait_for(out, process, epochs):
    while epochs_done(out) < epochs and process.poll() is None:
        time.sleep(0.005)


def test_killed_at_random_moments(tmp_path):
    """SIGKILL, six times: four at random moments, two with a file half written."""
    expected, out = tmp_path / "expected", tmp_path / "killed"
    finish(start(expected))
    rng, killed = random.Random(3), 0
    for k in range(6):
        if k in (1, 4):
            process = start(out, str(rng.randint(1, 4)))
        else:
            process = start(out)
            wait_for(out, process, epochs_done(out) + rng.randint(1, 3))
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.communicate(timeout=100)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 4
    finish(start(out))
    assert records(out) == records(expected)
    assert contents(out) == contents(expected)
    assert {f.name for f in out.iterdir()} == {METRICS, CHECKPOINT, "model.safetensors"}
    models = [Flow.load(folder / "model.safetensors") for folder in (out, expected)]
    assert bits(models[0]) == bits(models[1])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        kill_at_write(int(sys.argv[2]))
    long_run(folder, resume=(folder / CHECKPOINT).is_file())
