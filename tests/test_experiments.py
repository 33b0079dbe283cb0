"""Every experiment runs with --smoke, obeys its options, and leaves what it promises."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from npflow.bijections import Chain, InvertibleConv1x1, Logit, Reshape, Squeeze
from npflow.distributions import StandardNormal
from npflow.flow import Flow
from npflow.training import CHECKPOINT, METRICS

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if "\ndef main(" in p.read_text())
SUMMARY_KEYS = {"parameters", "configuration", "backend", "dtype", "finished"}
FIT_KEYS = {"test_nll", "test_nll_standard_error", "epochs", "seconds", "training"}
IMAGE_SCRIPTS = {"mnist_glow", "mnist_realnvp_multiscale"}
IMAGE_FIGURES = {
    "samples", "temperatures", "interpolation", "interpolation_digits", "inpainting", "rareness",
}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def trains_by_fit(script):
    """Whether the script, or a module of the folder that it imports, calls fit."""
    text = script.read_text()
    shared = re.findall(r"^from (\w+_common) import", text, re.MULTILINE)
    return any(
        "fit(" in t for t in (text, *(FOLDER.joinpath(f"{n}.py").read_text() for n in shared))
    )


def start(script, *arguments, folder):
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONWARNINGS": "error::RuntimeWarning"}
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(script, *arguments, folder):
    process = start(script, *arguments, folder=folder)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def records_of(out):
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_the_experiments_are_there():
    names = {script.stem for script in SCRIPTS}
    assert names >= {"toy_realnvp", "mnist_nice", "mnist_realnvp"} | IMAGE_SCRIPTS


@each_script
def test_smoke(script, tmp_path):
    """The default folder is runs/NAME; everything that is promised is in it."""
    output = run(script, "--smoke", folder=tmp_path)
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith(script.stem)
    summary = summary_of(out)
    assert summary.keys() >= SUMMARY_KEYS
    assert json.loads(output[output.index("{\n") :]) == summary
    assert summary["configuration"]["smoke"] is True
    flow = Flow.load(out / "model.safetensors")
    assert flow.params.count == summary["parameters"]
    assert np.isfinite(flow.log_prob(flow.sample(5))).all()
    if script.stem.startswith("mnist"):
        assert summary["test_bits_per_dim"] == pytest.approx(
            summary["test_nll"] / (784 * np.log(2)), rel=1e-12
        )
    figures = list(out.glob("*.png"))
    assert len(figures) >= 2
    for figure in figures:
        assert figure.read_bytes().startswith(PNG)
        assert figure.stat().st_size > 3000  # an empty canvas is smaller
    if trains_by_fit(script):
        assert summary.keys() >= FIT_KEYS
        assert np.isfinite(summary["test_nll"])
        records = records_of(out)
        assert [line["epoch"] for line in records] == list(range(1, summary["epochs"] + 1))
        assert records[-1]["train_nll"] < records[0]["train_nll"]
        assert (out / CHECKPOINT).is_file()
    if script.stem in IMAGE_SCRIPTS:
        assert {figure.stem for figure in figures} > IMAGE_FIGURES
        # Eight draws tighten the bound, and no draw of a density passes log P(v) by much.
        assert 0 < summary["test_bits_per_dim"] - summary["test_bits_per_dim_8_samples"] < 0.1
        assert summary["completion_log_prob"].keys() > {"digit", "ascent, noise", "T = 1"}
        rareness = summary["rareness"]
        assert rareness["test digits"]["rarer_than_digits"] == pytest.approx(0.5, abs=0.01)
        assert rareness["uniform noise"]["rarer_than_digits"] > 0.95
    assert not list(out.glob("*.part"))


@each_script
def test_other_options_are_obeyed_in_a_smoke_run(script, tmp_path):
    out = tmp_path / "out"
    arguments = ["--smoke", "--epochs", 1, "--dtype", "float64", "--memory", "recompute"]
    run(script, *arguments, "--seed", 3, "--backend", "reference", "--out", out, folder=tmp_path)
    summary = summary_of(out)
    assert (summary["dtype"], summary["backend"]) == ("float64", "reference")
    assert summary["configuration"]["seed"] == 3
    assert summary["configuration"]["memory"] == "recompute"
    assert Flow.load(out / "model.safetensors").backend.dtype == np.float64
    assert not (tmp_path / "runs").exists()
    if trains_by_fit(script):
        assert len(records_of(out)) == 1
        assert summary["training"].items() >= {"seed": 3, "memory": "recompute"}.items()


@each_script
def test_help(script, tmp_path):
    text = run(script, "--help", folder=tmp_path)
    for option in ["backend", "epochs", "seed", "dtype", "memory", "out", "resume", "smoke"]:
        assert f"--{option}" in text
    assert not list(tmp_path.iterdir())


CHOICES = [
    ("mnist_glow", ("--conditional", "--memory", "invert")),
    ("mnist_glow", ("--dequantization", "variational")),
    ("mnist_realnvp_multiscale", ("--config", "paper")),
    ("mnist_realnvp_multiscale", ("--config", "uva")),
    ("mnist_realnvp_multiscale", ("--conditional", "--dequantization", "variational")),
    ("mnist_made", ("--config", "agnostic")),
    ("mnist_made", ("--config", "gaussian")),
    ("mnist_made", ("--config", "mixture", "--conditional")),
    ("mnist_maf", ("--config", "mog")),
    ("mnist_maf", ("--conditional",)),
    ("mnist_nice", ("--config", "paper")),
    ("mnist_realnvp", ("--config", "report")),
    ("mnist_realnvp", ("--config", "best")),
    ("toy_realnvp", ("--config", "report")),
    ("toy_spline", ("--model", "autoregressive")),
    ("toy_maf_iaf", ("--dataset", "parabola")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "choice"), CHOICES, ids=lambda c: "".join(c))
def test_other_choices(name, choice, tmp_path):
    arguments = ["--smoke", "--epochs", 1, *choice, "--out", tmp_path / "out"]
    run(FOLDER / f"{name}.py", *arguments, folder=tmp_path)
    assert np.isfinite(summary_of(tmp_path / "out")["test_nll"])


@pytest.fixture
def image_figures(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("image_figures")


def normal_images():
    """A flow of 2 x 2 images whose logits y are normal, and the precision of y."""
    shape = (2, 2, 1)
    layers = Squeeze(shape), InvertibleConv1x1(4), Reshape((1, 1, 4), (4,))
    flow = Flow(
        StandardNormal(4), Chain((Logit(0.01), *layers)), shape=shape, backend="reference",
        dtype="float64",
    )  # fmt: skip
    weight = [[1.5, 0.5, 0.0, 0.4], [0.0, 1.0, 0.6, 0.0], [0.3, 0.0, 1.2, 0.0], [0.0, 0.7, 0.0, 1]]
    flow.bijection.layers[2].weight.value[...] = weight
    jacobian = flow.bijection.layers[2].forward(np.eye(4).reshape(4, 1, 1, 4))[0].reshape(4, 4)
    return flow, jacobian @ jacobian.T


KNOWN = np.array([True, True, False, False]).reshape(2, 2, 1)


def test_langevin_completes_as_the_posterior_says(image_figures):
    """Given y_a + N(0, 1), y_b is normal, too. Without noise it ends at the mode.

    Samples that know nothing of y_a would be off by 0.3 and more, and a mode of 0 by 0.1. The
    dynamics lags a little behind its falling deviation.
    """
    flow, precision = normal_images()
    logit = flow.bijection.layers[0]
    x = flow.sample(1000, seed=5)
    observed = logit.forward(x)[0].reshape(-1, 4)[:, :2]
    covariance = np.linalg.inv(precision + np.diag([1.0, 1.0, 0.0, 0.0]))
    mean = observed @ covariance[:2, 2:]
    assert (mean**2).mean(axis=0).min() > 0.1
    for temperature, tolerance in ((0.0, 0.02), (1.0, 0.12)):
        found = image_figures.langevin(flow, x, None, KNOWN, 1000, temperature)
        np.testing.assert_array_equal(found[:, KNOWN], x[:, KNOWN])
        error = logit.forward(found)[0].reshape(-1, 4)[:, 2:] - mean
        spread = temperature**2 * covariance[2:, 2:]
        np.testing.assert_allclose(error.T @ error / len(x), spread, rtol=0, atol=tolerance)


def test_ascent_ends_at_the_conditional_mode(image_figures):
    flow, precision = normal_images()
    logit = flow.bijection.layers[0]
    x = flow.sample(20, seed=5)
    y = logit.forward(x)[0].reshape(-1, 4)
    mode = -y[:, :2] @ precision[:2, 2:] @ np.linalg.inv(precision[2:, 2:])
    assert np.abs(mode).max() < 4  # the ends of the pixels' range are further away
    found = image_figures.ascend(flow, x, None, KNOWN, 200, 256.0)
    np.testing.assert_array_equal(found[:, KNOWN], x[:, KNOWN])
    np.testing.assert_allclose(logit.forward(found)[0].reshape(-1, 4)[:, 2:], mode, atol=1e-6)


def test_a_spherical_walk(image_figures):
    start, stop = np.random.default_rng(0).normal(size=(2, 50)) * [[1.0], [2.0]]
    t = np.linspace(0, 1, 5)[:, None]
    walk = image_figures.spherical(start, stop, t)
    np.testing.assert_allclose(walk[[0, -1]], [start, stop], atol=1e-13)
    lengths = np.linalg.norm(walk, axis=1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 5), rtol=1e-13)
    directions = walk / lengths[:, None]
    steps = np.linalg.norm(np.diff(directions, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-12)


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C: status 130 and one line that says how to go on; then the same end as without it."""
    script = FOLDER / "mnist_nice.py"
    arguments = ["--smoke", "--epochs", 12, "--out"]
    run(script, *arguments, tmp_path / "expected", folder=tmp_path)
    out = tmp_path / "interrupted"
    process = start(script, *arguments, out, folder=tmp_path)
    while process.poll() is None:
        if (out / METRICS).is_file() and (out / METRICS).read_text().count("\n") >= 2:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "the same command with --resume goes on from here" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert 2 <= len(records_of(out)) < 12
    assert not (out / "summary.json").exists()
    run(script, *arguments, out, "--resume", folder=tmp_path)
    assert records_of(out) == records_of(tmp_path / "expected")
    first, second = (Flow.load(f / "model.safetensors") for f in (out, tmp_path / "expected"))
    assert first.params.values.tobytes() == second.params.values.tobytes()
    results = [summary_of(folder) for folder in (out, tmp_path / "expected")]
    assert results[0]["test_nll"] == results[1]["test_nll"]


def test_a_finished_run_is_resumed_for_its_figures_alone(tmp_path):
    script, out = FOLDER / "mnist_nice.py", tmp_path / "out"
    run(script, "--smoke", "--out", out, folder=tmp_path)
    before, records = summary_of(out), records_of(out)
    (out / "samples.png").unlink()
    run(script, "--smoke", "--resume", "--out", out, folder=tmp_path)
    assert (out / "samples.png").is_file()
    assert records_of(out) == records
    assert summary_of(out)["test_nll"] == before["test_nll"]
