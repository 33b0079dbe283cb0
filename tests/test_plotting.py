"""Figures: the right pixels in the right place, and numbers on a grid that can be trusted."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from npflow import plotting
from npflow.bijections import Scale
from npflow.distributions import DiagonalNormal, StandardNormal
from npflow.errors import CheckpointError, ConfigurationError, ShapeError
from npflow.flow import Flow

SMALL = (3, 4)


def flat_images(n: int) -> np.ndarray:
    """n images, each of one grey of its own."""
    return np.repeat(np.arange(1, n + 1)[:, None] * 20, SMALL[0] * SMALL[1], axis=1)


def has_colour(path, colour: str) -> bool:
    return bool((np.abs(imread(path)[..., :3] - to_rgb(colour)).max(axis=-1) < 0.02).any())


def shifted_normal() -> Flow:
    base = DiagonalNormal(2, (0.5, -1.0), (0.6, 1.5))
    return Flow(base, Scale(2.0), backend="reference", dtype="float64")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_grid_puts_every_image_in_its_cell(tmp_path, dtype):
    plotting.image_grid(flat_images(5).astype(dtype), tmp_path / "a.png", columns=3, shape=SMALL)
    grey = np.rint(imread(tmp_path / "a.png")[..., 0] * 255)
    height, width = (n + plotting.GAP for n in SMALL)
    assert grey.shape == (
        plotting.ENLARGE * (2 * height - plotting.GAP),
        plotting.ENLARGE * (3 * width - plotting.GAP),
    )
    for k in range(5):
        top, left = plotting.ENLARGE * height * (k // 3), plotting.ENLARGE * width * (k % 3)
        cell = grey[top:, left:][: plotting.ENLARGE * SMALL[0], : plotting.ENLARGE * SMALL[1]]
        assert (cell == 20 * (k + 1)).all()
        assert (grey[top:, left:][:, cell.shape[1] : cell.shape[1] + 2] == 255).all()
    assert (grey[-2:, -2:] == 255).all()  # the sixth cell is empty


def test_image_grid_is_row_major_and_clips(tmp_path):
    image = np.zeros((1, 12))
    image[0, 1], image[0, 4], image[0, 5] = 400.0, 100.0, -3.0
    plotting.image_grid(image, tmp_path / "a.png", shape=SMALL)
    grey = np.rint(imread(tmp_path / "a.png")[:: plotting.ENLARGE, :: plotting.ENLARGE, 0] * 255)
    assert (grey[0, 1], grey[1, 0], grey[1, 1], grey[0, 0]) == (255, 100, 0, 0)


def test_image_rows_draws_every_row(tmp_path):
    rows = {"T = 0.7": flat_images(4), "epoch 13": flat_images(8)[4:]}
    plotting.image_rows(rows, tmp_path / "a.png", SMALL)
    picture = imread(tmp_path / "a.png")[..., 0]
    height, width = (plotting.ENLARGE * (n + plotting.GAP) for n in SMALL)
    right_edge = 4 * width - plotting.ENLARGE * plotting.GAP
    for row, first in enumerate((20, 100)):
        line = picture[row * height + plotting.ENLARGE]
        np.testing.assert_array_equal(
            np.rint(line[-right_edge::width] * 255), first + 20 * np.arange(4)
        )


@pytest.mark.parametrize(
    ("draw", "argument"),
    [
        (plotting.image_grid, np.zeros((3, 11))),
        (plotting.image_grid, np.zeros((0, 12))),
        (plotting.image_grid, np.zeros(12)),
        (plotting.image_rows, {}),
        (plotting.image_rows, {"a": np.zeros((2, 12)), "b": np.zeros((3, 12))}),
    ],
)
def test_images_of_a_wrong_shape_are_refused(tmp_path, draw, argument):
    with pytest.raises(ShapeError):
        draw(argument, tmp_path / "a.png", shape=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_written_is_a_named_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        plotting.curves([{"epoch": 1, "nll": 2.0}], {"nll": "a"}, tmp_path / "no" / "a.png", "nats")


def test_curves_draws_what_there_is(tmp_path):
    records = [{"epoch": k, "train": 3.0 / k} for k in range(1, 15)]
    keys = {"train": "training", "validation": "validation"}
    path = tmp_path / "a.png"
    plotting.curves(records, keys, path, "nats")
    assert has_colour(path, plotting.BLUE)
    assert not has_colour(path, plotting.VERMILION)
    records[3]["validation"] = 2.0
    plotting.curves(records, keys, path, "nats", {"floor": 0.0})
    assert has_colour(path, plotting.BLUE)
    assert has_colour(path, plotting.VERMILION)
    dashes = (np.abs(imread(path)[..., :3] - 0.25).max(axis=-1) < 0.02).sum(axis=1)
    assert 300 < dashes.max() < 700  # one long row of them, for the reference


@pytest.mark.parametrize("largest", [3.0, 3000.0])  # a linear axis, a logarithmic one
def test_histograms_share_one_axis(tmp_path, largest):
    """The bars of single numbers lie where the axis has them, each with a peak of 1."""
    values = {"low": np.full(90, 1.0), "middle": np.array([2.0]), "high": np.array([largest])}
    plotting.histograms(values, tmp_path / "a.png", "bits/dim")
    picture = imread(tmp_path / "a.png")[60:, :, :3]  # below the legend
    places, tops = [], []
    for colour in (plotting.BLUE, plotting.VERMILION, plotting.GREEN):
        line = np.abs(picture - to_rgb(colour)).max(axis=-1) < 0.02
        columns = np.flatnonzero(line.sum(axis=0) > 100)  # upright lines, not the base
        places.append(columns.mean())
        tops.append(np.flatnonzero(line[:, columns].any(axis=1))[0])
    share = (places[1] - places[0]) / (places[2] - places[0])
    expected = 0.5 if largest == 3 else np.log(2) / np.log(3000)
    assert share == pytest.approx(expected, abs=0.015)
    assert max(tops) - min(tops) <= 2


def test_grid_log_prob_is_the_density_at_the_cells():
    flow, extent = shifted_normal(), (-1.0, 2.0, -3.0, 1.0)
    log_prob = plotting.grid_log_prob(flow, extent, 6)
    for row, column in ((0, 0), (2, 5), (5, 1)):
        x, y = -1 + 3 * (column + 0.5) / 6, -3 + 4 * (row + 0.5) / 6
        standard = (2 * x - 0.5) / 0.6, (2 * y + 1.0) / 1.5
        log_normalizer = math.log(2 * math.pi * 0.6 * 1.5) - 2 * math.log(2)
        expected = -0.5 * (standard[0] ** 2 + standard[1] ** 2) - log_normalizer
        assert log_prob[row, column] == pytest.approx(expected, abs=1e-12)


def test_a_large_grid_in_batches_is_one_grid(monkeypatch):
    flow, extent = shifted_normal(), (-1.0, 2.0, -3.0, 1.0)
    whole = plotting.grid_log_prob(flow, extent, 9)
    monkeypatch.setattr(plotting, "BATCH", 7)
    np.testing.assert_array_equal(plotting.grid_log_prob(flow, extent, 9), whole)


def test_integral_of_a_density_is_one_and_of_its_half_a_half():
    flow = shifted_normal()  # of mean (0.25, -0.5) and deviations 0.3 and 0.75
    for x_min, expected in ((-2.75, 1.0), (0.25, 0.5)):
        extent = (x_min, 3.25, -7.0, 6.0)
        values = np.exp(plotting.grid_log_prob(flow, extent, 400))
        assert plotting.integral(values, extent) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("extent", "size"), [((1, 0, 0, 1), 5), ((0, 1, 0, 1), 0)])
def test_a_grid_without_cells_is_refused(extent, size):
    with pytest.raises(ConfigurationError):
        plotting.grid(extent, size)


def test_surrounding_has_a_margin():
    assert plotting.surrounding([[0, 10], [2, 30]], 0.5) == (-1.0, 3.0, 0.0, 40.0)


def test_density_and_morph_are_drawn(tmp_path):
    flow = Flow(StandardNormal(2), Scale(2.0), backend="reference")
    points = flow.sample(200, seed=1)
    plotting.density(flow, points, tmp_path / "points.png", size=20, shown=200)
    extent = (-2.0, 2.0, -2.0, 2.0)
    plotting.density(flow, flow.log_prob, tmp_path / "target.png", extent=extent, size=20)
    for name in ("points.png", "target.png"):
        picture = imread(tmp_path / name)[..., :3]
        thirds = np.array_split(picture, 3, axis=1)
        assert all((third.std(axis=-1) > 0.1).sum() > 100 for third in thirds)  # not grey
    with pytest.raises(ConfigurationError, match="extent"):
        plotting.density(flow, flow.log_prob, tmp_path / "no.png")

    quadrants = np.arange(200) % 4
    stages = [("latents", 2 * points), ("samples", points), ("shifted", points + 1)]
    plotting.morph(stages, quadrants, tmp_path / "morph.png")
    picture = imread(tmp_path / "morph.png")
    assert (picture[..., :3].std(axis=-1) > 0.1).any()


def test_densities_share_one_scale(tmp_path):
    """The second density is half the first: nowhere is its panel as dark."""
    values = np.exp(-(plotting.grid((-3, 3, -3, 3), 40) ** 2).sum(axis=1) / 2).reshape(40, 40)
    points = np.zeros((1, 2))
    panels = {"first": (values, points), "second": (values / 2, points)}
    plotting.densities(panels, tmp_path / "a.png", (-3, 3, -3, 3))
    picture = imread(tmp_path / "a.png")[..., :3]
    upper = picture[picture.shape[0] // 10 : picture.shape[0] // 2]
    width = picture.shape[1]
    # Blue alone: axes and letters are grey, and the darkest ink is dark blue.
    ink = np.where(upper.std(axis=-1) > 0.05, upper.mean(axis=-1), 1.0)
    first, second = ink[:, : width // 2].min(), ink[:, width // 2 :].min()
    assert first < 0.15 < 0.3 < second


@pytest.mark.parametrize("panels", [1, 5])
def test_functions_and_their_knots_are_drawn(tmp_path, panels):
    x = np.linspace(-1, 1, 50)
    one = plotting.Function("cube", x, x**3, np.array([-1.0, 0.0, 1.0]))
    other = plotting.Function("twice", x, 2 * x, np.array([0.5]))
    path = tmp_path / "a.png"
    plotting.functions({f"layer {k}": [one, other] for k in range(panels)}, path)
    assert has_colour(path, plotting.BLUE) and has_colour(path, plotting.VERMILION)
    height, width = imread(path).shape[:2]
    assert width / height == pytest.approx(2.8 * min(panels, 4) / (3 * -(-panels // 4)), rel=0.01)
