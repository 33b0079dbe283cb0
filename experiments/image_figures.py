"""What experiments on images add: several draws of noise, and figures of the trained flow.

Figures: digits between two digits, digits whose lower half is completed, and which images are rare.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mnist_common import DIGITS, Experiment, ImageOptions, pixels

from npflow import plotting, random
from npflow.backend import Array, get_backend
from npflow.flow import Flow
from npflow.metrics import bits_per_dim
from npflow.random import Stream
from npflow.training import Data, evaluate

BATCH = 250  # images at a time, in evaluation
DRAWS = 8  # of noise
PAIRS, WALK = 10, 20  # of the interpolation: rows, images in each
COMPLETED = 12  # digits
STEPS = 400  # of each completion
TEMPERATURES = (0.0, 0.7, 1.0)  # of completions by Langevin dynamics
LONGEST = 300.0  # gradient there, of one image
JUDGED = 1000  # test images that others are compared with


def image_experiment(options: ImageOptions, model: dict[str, Any], **settings: Any) -> Experiment:
    """An Experiment with these options, which judges and draws what is particular to images."""
    model = model | {"dequantization": options.dequantization}
    if options.conditional:
        model |= {"context_features": DIGITS}
    return Experiment(
        model=model,
        conditional=options.conditional,
        more=several_draws,
        draw=partial(draw, steps=3 if options.smoke else STEPS),
        batch_size=BATCH,
        **settings,
    )


def several_draws(flow: Flow, test: Data) -> dict[str, Any]:
    """Test bits/dim by importance sampling."""
    nll = evaluate(flow, test, batch_size=BATCH, samples=DRAWS)
    return {f"test_bits_per_dim_{DRAWS}_samples": float(bits_per_dim(nll.mean(), flow.features))}


def draw(folder: Path, flow: Flow, test: Data, steps: int) -> dict[str, Any]:
    """All figures, and the numbers that belong to them."""
    interpolate(flow, test, folder / "interpolation_digits.png")
    return {
        "completion_log_prob": complete(flow, test, folder / "inpainting.png", steps),
        "rareness": judge_rareness(flow, test, folder / "rareness.png"),
    }


def with_noise(flow: Flow, data: Data, n: int) -> tuple[Array, Array | None]:
    """The first n images as the real numbers that the flow is a density of, and their context."""
    noise = 0, 0, Stream.DEQUANTIZE_EVALUATION
    x, context = data.batch(flow, slice(0, n), *noise)
    if flow.dequantizer is not None:
        x = flow.dequantizer.sample(x, *noise).x
    return x, context


# Between digits


def interpolate(flow: Flow, test: Data, path: Path) -> None:
    """Each row walks from one test digit to another on a sphere of latents; a context goes along.

    Latents lie near a sphere, as their dimension is high. A straight line would leave it.
    """
    x, context = with_noise(flow, test, 2 * PAIRS)
    z = flow.backend.to_numpy(flow.to_latent(x, context)).astype(np.float64)
    t = np.linspace(0, 1, WALK)[:, None]
    walks = [spherical(z[k], z[k + 1], t) for k in range(0, len(z), 2)]
    if context is not None:
        ends = flow.backend.to_numpy(context)
        straight = [(1 - t) * ends[k] + t * ends[k + 1] for k in range(0, len(ends), 2)]
        context = flow.backend.array(np.concatenate(straight))
    images = flow.from_latent(flow.backend.array(np.concatenate(walks)), context)
    plotting.image_grid(pixels(flow, images), path, columns=WALK)


def spherical(start: np.ndarray, stop: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points (n, D) on the arc between two vectors, t (n, 1); the length changes linearly."""
    lengths = np.linalg.norm(start), np.linalg.norm(stop)
    angle = np.arccos(start @ stop / (lengths[0] * lengths[1]))
    arc = np.sin((1 - t) * angle) * start / lengths[0] + np.sin(t * angle) * stop / lengths[1]
    return arc / np.sin(angle) * ((1 - t) * lengths[0] + t * lengths[1])


# Completion


def complete(flow: Flow, test: Data, path: Path, steps: int) -> dict[str, float]:
    """Digits whose lower half is hidden, completed in two ways; the mean log p of each row.

    Gradient ascent in the hidden pixels stays near where it starts: from noise it finds no digit,
    from black an image that may be denser than the digit, and is none either. Langevin dynamics in
    the latents moves between images that the flow draws.
    """
    xp = flow.backend.xp
    x, context = with_noise(flow, test, COMPLETED)
    known = xp.ones(flow.shape, bool)
    known[flow.shape[0] // 2 :] = False
    rows = {"digit": x, "given": xp.where(known, x, x.dtype.type(128))}
    for start, brightest in {"noise": 256.0, "black": 1.0}.items():
        rows[f"ascent, {start}"] = ascend(flow, x, context, known, steps, brightest)
    for temperature in TEMPERATURES:
        rows[f"T = {temperature:g}"] = langevin(flow, x, context, known, steps, temperature)
    plotting.image_rows({label: pixels(flow, row) for label, row in rows.items()}, path)
    rows.pop("given")
    return {label: float(flow.log_prob(row, context).mean()) for label, row in rows.items()}


def ascend(
    flow: Flow, x: Array, context: Array | None, known: Array, steps: int, brightest: float
) -> Array:
    """Gradient ascent in log p(y), y = logit(x), of the pixels that are not known.

    They start as uniform noise up to `brightest`. A step that is no gain is tried again at half its
    size; else the next one is a fifth larger.
    """
    xp, logit = flow.backend.xp, flow.bijection.layers[0]
    ones = xp.ones(len(x), x.dtype)
    ends = logit.forward(flow.backend.array([[0.0, logit.levels]]))[0][0]
    noise = random.uniform(flow.backend, x.shape, 0, Stream.SAMPLE, 0)
    trial = y = logit.forward(xp.where(known, x, brightest * noise))[0]
    dy, log_p, size = xp.zeros_like(y), -np.inf * ones, 0.1 * ones
    for _ in range(steps):
        image, log_det, cache = logit.inverse(trial)
        trial_log_p, dx = flow.log_prob_and_grad(image, context)
        trial_log_p += log_det  # of y, not of x
        trial_dy, _ = logit.inverse_backward(cache, dx, ones)
        gain = trial_log_p > log_p
        log_p, size = xp.where(gain, trial_log_p, log_p), xp.where(gain, 1.2 * size, 0.5 * size)
        of_image = gain[:, None, None, None]
        y, dy = xp.where(of_image, trial, y), xp.where(of_image, xp.where(known, 0, trial_dy), dy)
        trial = xp.clip(y + size[:, None, None, None] * dy, *ends)
    return xp.where(known, x, logit.inverse(y)[0])


def langevin(
    flow: Flow, x: Array, context: Array | None, known: Array, steps: int, temperature: float
) -> Array:
    """Langevin dynamics in the latents, given noisy observations of the known pixels' logits y:

        log p(z | y) = -|z|^2 / 2 - |y(z) - y|^2 / 2 s^2 + constant
        z <- z + e/2 grad + temperature sqrt(e) normal

    s goes down from 5 to 1 and e from 0.05 to 0.005: at last the observations are as sharp as the
    dequantization noise of black pixels. Temperature 0 climbs to a mode.
    """
    xp, logit = flow.backend.xp, flow.bijection.layers[0]
    y = logit.forward(x)[0]
    zeros = xp.zeros(len(x), x.dtype)
    z = flow.base.sample(len(x), 0)
    schedule = zip(np.geomspace(5, 1, steps), np.geomspace(0.05, 0.005, steps), strict=True)
    for step, (deviation, size) in enumerate(schedule, 1):
        image, _, cache = flow.bijection.inverse(z, context)
        found, _, logit_cache = logit.forward(image)
        dy = xp.where(known, y - found, 0) * float(deviation**-2)
        dimage, _ = logit.backward(logit_cache, dy, zeros)
        dz, _ = flow.bijection.inverse_backward(cache, dimage, zeros)
        dz = xp.where(xp.isfinite(dz), dz, 0)  # an image that overflowed: the prior leads back
        dz -= z
        dz *= xp.minimum(1, LONGEST / xp.linalg.norm(dz, axis=1, keepdims=True))
        z += float(size) / 2 * dz
        z += temperature * float(size) ** 0.5 * flow.base.sample(len(x), 0, step)
    flow.params.zero_grads()
    return xp.where(known, x, flow.from_latent(z, context))


# Rareness


def judge_rareness(flow: Flow, test: Data, path: Path) -> dict[str, dict[str, float]]:
    """Bits/dim of test digits and of images that are none: their mean, and how often an image is
    rarer than a test digit (1: always, 0.5: by chance).
    """
    digits = flow.backend.to_numpy(test.rows[:JUDGED])
    context = None if test.context is None else test.context[:JUDGED]
    n, features = len(digits), flow.features
    host, flat = get_backend("reference"), digits.reshape(n, features)
    order = random.uniform(host, flat.shape, 0, Stream.PERMUTATION, 0).argsort(axis=1)
    noise = 256 * random.uniform(host, flat.shape, 0, Stream.SAMPLE, 0)
    sets = {
        "test digits": flat,
        "shuffled pixels": np.take_along_axis(flat, order, axis=1),
        "inverted digits": 255 - flat,
        "uniform noise": noise.astype(np.uint8),
    }
    bits = {}
    for label, rows in sets.items():
        nll = evaluate(flow, rows.reshape(digits.shape), context, batch_size=BATCH)
        bits[label] = bits_per_dim(nll, features)
    plotting.histograms(bits, path, "bits/dim")
    typical = np.sort(bits["test digits"])
    return {
        label: {
            "bits_per_dim": float(values.mean()),
            "rarer_than_digits": float(np.searchsorted(typical, values).mean() / n),
        }
        for label, values in bits.items()
    }
