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
from npflow.backend import Array
from npflow.bijections import Logit
from npflow.flow import Flow
from npflow.metrics import bits_per_dim
from npflow.random import Stream
from npflow.training import Data, evaluate

BATCH = 250  # images at a time, in evaluation
DRAWS = 8  # of noise
PAIRS, WALK = 10, 20  # of the interpolation: rows, images in each
COMPLETED = 12  # digits
SWEEPS = 500  # steps of the completion
JUDGED = 1000  # test images among which others are rare


def image_experiment(options: ImageOptions, model: dict[str, Any], **settings: Any) -> Experiment:
    """An Experiment with these options, which judges and draws what is particular to images."""
    model = model | {"dequantization": options.dequantization}
    if options.conditional:
        model |= {"context_features": DIGITS}
    return Experiment(
        model=model,
        conditional=options.conditional,
        more=several_draws,
        draw=partial(draw, quick=options.smoke),
        batch_size=BATCH,
        **settings,
    )


def several_draws(flow: Flow, test: Data) -> dict[str, Any]:
    """Test bits/dim by importance sampling."""
    nll = evaluate(flow, test, batch_size=BATCH, samples=DRAWS)
    return {f"test_bits_per_dim_{DRAWS}_samples": float(bits_per_dim(nll.mean(), flow.features))}


def draw(folder: Path, flow: Flow, test: Data, quick: bool) -> dict[str, Any]:
    """All figures, and the numbers that belong to them."""
    interpolate(flow, test, folder / "interpolation_digits.png")
    return {}


def with_noise(flow: Flow, data: Data, n: int) -> tuple[Array, Array | None]:
    """The first n images as the real numbers that the flow is a density of, and their context."""
    noise = 0, 0, Stream.DEQUANTIZE_EVALUATION
    x, context = data.batch(flow, slice(0, n), *noise)
    if flow.dequantizer is not None:
        x = flow.dequantizer.sample(x, *noise).x
    return x, context


def interpolate(flow: Flow, test: Data, path: Path) -> None:
    """Each row walks from one test digit to another on a sphere of latents; a context goes along.

    Latents of high dimension lie near a sphere, and a straight line would leave it.
    """
    x, context = with_noise(flow, test, 2 * PAIRS)
    z = flow.backend.to_numpy(flow.to_latent(x, context)).astype(np.float64)
    t = np.linspace(0, 1, WALK)[:, None]
    walks = [spherical(z[k], z[k + 1], t) for k in range(0, len(z), 2)]
    if context is not None:
        ends = flow.backend.to_numpy(context)
        straight = [(1 - t) * ends[k] + t * ends[k + 1] for k in range(0, len(z), 2)]
        context = flow.backend.array(np.concatenate(straight))
    images = flow.from_latent(flow.backend.array(np.concatenate(walks)), context)
    plotting.image_grid(pixels(flow, images), path, columns=WALK)


def spherical(start: np.ndarray, stop: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points (n, D) on the arc between two vectors, t (n, 1); the length changes linearly."""
    lengths = np.linalg.norm(start), np.linalg.norm(stop)
    angle = np.arccos(start @ stop / (lengths[0] * lengths[1]))
    arc = np.sin((1 - t) * angle) * start / lengths[0] + np.sin(t * angle) * stop / lengths[1]
    return arc / np.sin(angle) * ((1 - t) * lengths[0] + t * lengths[1])
