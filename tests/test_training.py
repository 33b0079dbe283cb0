"""The training loop: what it fits, what it draws, what it keeps, and what it says."""

import json
import math
import threading

import numpy as np
import pytest

from npflow import datasets, random, training
from npflow.bijections import Diagonal, Logit
from npflow.distributions import StandardNormal
from npflow.errors import DtypeError, NonFiniteError
from npflow.flow import Flow
from npflow.metrics import bits_per_dim
from npflow.models import realnvp
from npflow.training import CHECKPOINT, METRICS, Trainer, TrainingOptions, evaluate, fit


@pytest.fixture(params=["reference", "numpy"])
def backend(request):
    return request.param


def model(backend="numpy", **changes):
    return realnvp(**{"features": 2, "couplings": 4, "hidden": (16,), "backend": backend} | changes)


def moons(rows, seed=0):
    return datasets.toy("two_moons", rows, seed)


def train(flow, rows, validation=None, *, out=None, on_epoch=None, context=None, **options):
    options = TrainingOptions(**{"epochs": 3, "batch_size": 32} | options)
    return fit(
        flow, rows, validation, options=options, context=context, out=out, on_epoch=on_epoch,
        progress_bar=False,
    )  # fmt: skip


@pytest.fixture
def batches(monkeypatch):
    """Every batch that training sees, in order."""
    seen, original = [], Trainer.train_step

    def train_step(self, x, context):
        seen.append((x.copy(), None if context is None else context.copy()))
        return original(self, x, context)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return seen


# Fitting


@pytest.mark.parametrize("memory", ["store", "recompute", "invert"])
def test_loss_falls_on_toy_data(memory, backend):
    flow, test = model(backend), moons(2000, seed=9)
    before = evaluate(flow, test).mean()
    history = train(flow, moons(2000), epochs=8, learning_rate=5e-3, memory=memory)
    after = evaluate(flow, test).mean()
    assert before > 2.3
    assert after < 1.7
    assert after > datasets.toy_entropy("two_moons")  # nothing can be better
    assert [line["epoch"] for line in history] == list(range(1, 9))


def test_a_gaussian_is_fitted_exactly(backend):
    """Maximum likelihood of a diagonal scaling is known: exp(-s) is the root mean square."""
    rows = np.random.default_rng(0).normal(size=(512, 2)) * [0.5, 3.0]
    flow = Flow(StandardNormal(2), Diagonal(2), backend=backend, dtype="float64")
    train(flow, rows, batch_size=512, epochs=400, learning_rate=0.05, schedule="cosine")
    expected = -0.5 * np.log((rows**2).mean(0))
    np.testing.assert_allclose(flow.bijection.layers[0].log_scale.value, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_seed_same_bits(backend, dtype):
    runs = []
    for seed in (0, 0, 1):
        flow = model(backend, dtype=dtype)
        history = train(flow, moons(200), moons(100, 1), seed=seed, average=0.9)
        runs.append((flow.params.values.tobytes(), [line["validation_nll"] for line in history]))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_backends_train_alike():
    flows = [model(name, dtype="float64", batch_norm=True) for name in ("reference", "numpy")]
    rows = np.random.default_rng(0).integers(0, 9, (200, 2))
    histories = [train(flow, rows, rows[:50], average=0.9, max_norm=1.0) for flow in flows]
    for ours, theirs in zip(*histories, strict=True):
        assert ours["train_nll"] == pytest.approx(theirs["train_nll"], rel=1e-9)
        assert ours["validation_nll"] == pytest.approx(theirs["validation_nll"], rel=1e-9)
    values = [flow.params.values for flow in flows]
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-8)
    assert np.abs(values[0] - model(dtype="float64", batch_norm=True).params.values).max() > 1e-3


# Batches and noise


def test_batches_are_drawn_without_replacement_in_a_new_order_each_epoch(batches):
    rows = np.arange(200.0).reshape(100, 2)
    train(model(), rows, batch_size=10, epochs=2)
    first, second = (np.concatenate([x for x, _ in batches[k : k + 10]]) for k in (0, 10))
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), rows[:, 0])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rows)


def test_the_last_smaller_batch_is_left_out_and_a_short_set_is_one_batch(batches):
    train(model(), moons(25), batch_size=10, epochs=1)
    assert [len(x) for x, _ in batches] == [10, 10]
    batches.clear()
    train(model(), moons(7), batch_size=10, epochs=2)
    assert [len(x) for x, _ in batches] == [7, 7]


def test_integers_get_fresh_noise_each_epoch_and_floats_none(batches):
    rows = np.stack([np.arange(64), 64 - np.arange(64)], axis=1).astype(np.uint8)
    train(model(), rows, epochs=2)
    noise = []
    for k in (0, 2):
        x = np.concatenate([x for x, _ in batches[k : k + 2]])
        x = x[np.argsort(x[:, 0])]
        np.testing.assert_array_equal(np.floor(x), rows)
        noise.append(x - rows)
    assert len(np.unique(noise)) > 250  # of 256
    assert np.abs(noise[0] - noise[1]).min() > 0
    assert abs(np.mean(noise) - 0.5) < 5 * math.sqrt(1 / 12 / 256)
    batches.clear()
    train(model(), rows.astype(np.float32), epochs=1)
    for x, _ in batches:
        np.testing.assert_array_equal(x, np.floor(x))


def test_evaluation_of_integers_dequantizes_with_the_seed(backend):
    flow = model(backend)
    images = np.random.default_rng(0).integers(0, 9, (70, 2))
    with pytest.raises(DtypeError, match=r"npflow\.dequantize"):
        flow.log_prob(images)
    nll = evaluate(flow, images, seed=3)
    assert nll.shape == (70,)
    assert nll.dtype == np.float64
    np.testing.assert_array_equal(evaluate(flow, images, seed=3), nll)
    assert np.abs(evaluate(flow, images, seed=4) - nll).min() > 0
    noise = random.uniform(flow.backend, (70, 2), 3, random.Stream.DEQUANTIZE_EVALUATION, 0)
    np.testing.assert_array_equal(-flow.log_prob(images + noise), nll.astype(np.float32))
    rows = moons(70)
    by_batch = evaluate(flow, rows, batch_size=32)
    np.testing.assert_allclose(by_batch, -flow.log_prob(rows), rtol=1e-5)


def test_context_follows_its_rows(batches):
    rows = np.arange(80.0).reshape(40, 2)
    flow = model(context_features=1)
    train(flow, rows, context=rows[:, :1] / 2, batch_size=8, epochs=2)
    assert len(batches) == 10
    for x, context in batches:
        np.testing.assert_array_equal(context, x[:, :1] / 2)


# Validation and what is kept


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_best_weights_are_kept(backend, batch_norm):
    """24 rows are soon overfitted: validation turns, training stops, and the best is left."""
    kept, validation = {}, moons(300, 1)
    flow = model(backend, hidden=(64, 64), batch_norm=batch_norm)

    def keep(epoch, flow):
        kept[epoch] = flow.params.values.copy()

    history = train(
        flow, moons(24), validation, epochs=200, learning_rate=2e-3, patience=3, on_epoch=keep
    )
    nlls = [line["validation_nll"] for line in history]
    best = int(np.argmin(nlls)) + 1
    assert len(history) == best + 3 < 200
    assert best > 1
    np.testing.assert_array_equal(flow.params.values, kept[best])
    assert not np.array_equal(kept[best], kept[len(history)])
    assert evaluate(flow, validation).mean() == min(nlls)


def test_without_validation_the_last_weights_are_kept():
    kept = []
    flow = model()
    history = train(flow, moons(100), on_epoch=lambda _, f: kept.append(f.params.values.copy()))
    np.testing.assert_array_equal(flow.params.values, kept[-1])
    assert "validation_nll" not in history[-1]


def test_the_average_is_what_is_validated_and_kept(monkeypatch):
    """Against an average taken here, after every step."""
    flow, validation = model(dtype="float64"), moons(100, 1)
    average = flow.params.values.copy()
    original = Trainer.train_step

    def train_step(self, x, context):
        nonlocal average
        loss = original(self, x, context)
        n = self.progress.step
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * flow.params.values
        return loss

    monkeypatch.setattr(Trainer, "train_step", train_step)
    history = train(flow, moons(200), validation, average=0.6, epochs=4)
    assert min(history, key=lambda line: line["validation_nll"]) is history[-1]
    np.testing.assert_allclose(flow.params.values, average, rtol=0, atol=1e-14)
    assert evaluate(flow, validation).mean() == history[-1]["validation_nll"]


def test_statistics_are_taken_over_the_training_data():
    flow = model(batch_norm=True, dtype="float64")
    rows = moons(500)
    train(flow, rows, rows[:100])
    first = flow.bijection.layers[0]
    np.testing.assert_allclose(first.mean.value, rows.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(first.var.value, rows.var(0), rtol=0, atol=1e-12)


def test_metrics_are_one_line_of_json_an_epoch(tmp_path):
    flow = model()
    options = {"schedule": "exponential", "decay": 0.5, "learning_rate": 0.01, "memory": "invert"}
    history = train(flow, moons(100), moons(50, 1), out=tmp_path, **options)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert set(history[0]) == {
        "epoch", "step", "train_nll", "train_bits_per_dim", "validation_nll",
        "validation_bits_per_dim", "learning_rate", "drift", "seconds",
    }  # fmt: skip
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert [line["step"] for line in history] == [3, 6, 9]
    assert [line["learning_rate"] for line in history] == [1e-2, 5e-3, 2.5e-3]
    for line in history:
        assert line["train_bits_per_dim"] == bits_per_dim(line["train_nll"], 2)
        assert line["validation_bits_per_dim"] == bits_per_dim(line["validation_nll"], 2)
        assert 0 <= line["drift"] < 1e-3
    assert history[-1]["drift"] > 0
    assert (tmp_path / CHECKPOINT).is_file()


def test_train_nll_is_the_mean_of_the_steps(monkeypatch):
    losses, original = [], Trainer.train_step

    def train_step(self, x, context):
        losses.append(float(original(self, x, context)))
        return losses[-1]

    monkeypatch.setattr(Trainer, "train_step", train_step)
    history = train(model(), moons(100), batch_size=10, epochs=2)
    for k, line in enumerate(history):
        assert line["train_nll"] == pytest.approx(np.mean(losses[10 * k : 10 * k + 10]), rel=1e-14)


def test_the_progress_bar_shows_nats_and_bits(capfd, monkeypatch):
    monkeypatch.setattr(training, "FETCH_EVERY", 2)
    options = TrainingOptions(epochs=1, batch_size=10)
    history = fit(model(), moons(100), moons(50, 1), options=options)
    shown = "".join(capfd.readouterr())
    assert "10/10" in shown
    assert " nats, " in shown
    assert "bits/dim" in shown
    assert f"epoch 1: train {history[0]['train_nll']:.4f} nats" in shown
    assert f"validation {history[0]['validation_nll']:.4f}" in shown


# Faults


def break_at(monkeypatch, step, spoil):
    """Call spoil(flow) before the step of that number."""
    original = Trainer.train_step

    def train_step(self, x, context):
        if self.progress.step + 1 == step:
            spoil(self.flow)
        return original(self, x, context)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def spoil_parameter(flow):
    flow.params.value("bijection.layers.2.conditioner.weights.1")[3, 1] = np.nan


def spoil_layer(flow):
    """Finite parameters whose result is not: log-scales of 200 in float32."""
    coupling = flow.bijection.layers[1]
    coupling.map.bounds.value[...] = 200.0
    coupling.conditioner.biases[-1].value[...] = 10.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_parameter, r"step 8: parameter bijection\.layers\.2\.conditioner\.weights\.1 is"),
        (spoil_layer, r"step 8: layer 1 \(Coupling\) forward gives values that are not finite"),
    ],
)
def test_training_that_turns_non_finite_names_where_and_when(
    spoil, message, backend, monkeypatch, tmp_path
):
    """The last checkpoint stays, and the run can be resumed from it."""
    rows, validation = moons(96), moons(50, 1)
    expected = model(backend)
    train(expected, rows, validation)
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        break_at(patch, 8, spoil)
        with pytest.raises(NonFiniteError, match=message):
            train(model(backend), rows, validation, out=tmp_path)
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2
    flow = model(backend)
    options = TrainingOptions(epochs=3, batch_size=32)
    fit(flow, rows, validation, options=options, out=tmp_path, resume=True, progress_bar=False)
    np.testing.assert_array_equal(flow.params.values, expected.params.values)


def test_a_gradient_that_is_not_finite_in_the_last_step_does_not_reach_the_checkpoint(
    monkeypatch, tmp_path
):
    """The loss is fine there, and there is no validation that would notice."""
    original = Flow.loss_and_grad

    def loss_and_grad(self, *arguments):
        loss = original(self, *arguments)
        loss_and_grad.calls += 1
        if loss_and_grad.calls == 9:
            self.params.grad("bijection.layers.1.map.bounds")[0] = np.inf
        return loss

    loss_and_grad.calls = 0
    monkeypatch.setattr(Flow, "loss_and_grad", loss_and_grad)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(
            NonFiniteError, match=r"parameter bijection\.layers\.1\.map\.bounds is not finite"
        ),
    ):
        train(model(), moons(96), out=tmp_path)
    flow = model()
    options = TrainingOptions(epochs=2, batch_size=32)
    fit(flow, moons(96), options=options, out=tmp_path, resume=True, progress_bar=False)
    assert np.isfinite(flow.params.values).all()


def test_data_outside_the_range_of_the_model_is_named(backend):
    rows = np.full((64, 2), 300, np.uint16)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(NonFiniteError, match=r"training step 1: layer 0 \(Logit\)"),
    ):
        train(model(backend, logit=Logit(1e-3)), rows)


def test_an_interrupt_without_a_folder_just_ends():
    def interrupt(epoch, flow):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model(), moons(100), on_epoch=interrupt)


def test_training_in_another_thread_leaves_signals_alone():
    history = []
    thread = threading.Thread(target=lambda: history.extend(train(model(), moons(100))))
    thread.start()
    thread.join()
    assert len(history) == 3
