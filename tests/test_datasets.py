"""npflow.datasets and npflow.metrics.

Each toy density is written here a second time, as a density and not as a sampler: its quadrature
must give the entropy that npflow states, and the sampler's points must have that mean -log p.
"""

import functools
import gzip
import hashlib
import http.server
import math
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from npflow import datasets
from npflow.datasets import MNIST_FILES, TOYS, mnist, parse_idx, toy, toy_entropy
from npflow.errors import ConfigurationError, DatasetError, NonFiniteError, ShapeError
from npflow.metrics import bits_per_dim, nats, standard_error

MNIST_FOLDER = Path(__file__).parents[1] / "experiments" / "data" / "mnist"


# The toy densities as densities


class Mixture(NamedTuple):
    """Isotropic Gaussians of one σ about weighted centres: a curve by its quadrature nodes."""

    centres: np.ndarray  # (K, 2)
    weights: np.ndarray  # (K,)
    sigma: float

    def log_density(self, x):
        squares = ((x[:, None] - self.centres) ** 2).sum(axis=2) / (2 * self.sigma**2)
        least = squares.min(axis=1, keepdims=True)
        total = (np.exp(least - squares) * self.weights).sum(axis=1)
        return np.log(total) - least[:, 0] - math.log(2 * math.pi * self.sigma**2)

    def mass_and_entropy(self):
        """Trapezoidal sums over a grid of step σ/4, spectrally accurate for such smooth p."""
        step = self.sigma / 4
        low, high = self.centres.min(axis=0), self.centres.max(axis=0)
        factors = []
        for axis in (0, 1):
            grid = np.arange(low[axis] - 9 * self.sigma, high[axis] + 9 * self.sigma, step)
            scaled = (grid[:, None] - self.centres[:, axis]) / self.sigma
            factors.append(np.exp(-0.5 * scaled**2) / (self.sigma * math.sqrt(2 * math.pi)))
        p = (factors[0] * self.weights) @ factors[1].T * step**2
        q = p[p > 0]
        return q.sum(), -(q * np.log(q / step**2)).sum()


def circle(nodes):
    angle = np.arange(nodes) * (2 * np.pi / nodes)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def gauss_legendre(low, high, nodes):
    t, weights = np.polynomial.legendre.leggauss(nodes)
    return low + (high - low) * (t + 1) / 2, weights / 2


def moons(noise):
    t, weights = gauss_legendre(0, np.pi, 200)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    return Mixture(np.concatenate([upper, lower]), np.tile(weights / 2, 2), noise)


def swiss_roll():
    t, weights = gauss_legendre(1.5 * np.pi, 4.5 * np.pi, 300)
    return Mixture(np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 5, weights, 0.2)


MIXTURES = {
    "two_moons": moons(0.1),
    "eight_gaussians": Mixture(circle(8) * 4 / 1.414, np.full(8, 1 / 8), 0.5 / 1.414),
    "rings": Mixture(
        np.concatenate([radius * circle(400) for radius in (0.75, 1.5, 2.25, 3.0)]),
        np.full(1600, 1 / 1600),
        0.08,
    ),
    "swiss_roll": swiss_roll(),
}


def checkerboard_log_density(x):
    column, row = np.floor(x / 2).T
    inside = (np.abs(x) <= 4).all(axis=1) & ((column + row) % 2 == 0)
    return np.where(inside, -math.log(32), -np.inf)


def parabola_log_density(x):
    x1, x2 = 40 * x.T
    exponent = (x2 / 4) ** 2 / 2 + (x1 - x2**2 / 4) ** 2 / 2
    return 2 * math.log(40) - math.log(4) - math.log(2 * math.pi) - exponent


LOG_DENSITIES = {name: mixture.log_density for name, mixture in MIXTURES.items()} | {
    "checkerboard": checkerboard_log_density,
    "parabola": parabola_log_density,
}


# Entropies and samplers


@pytest.mark.parametrize("name", MIXTURES)
def test_entropy_is_the_quadrature_of_the_density(name):
    mass, entropy = MIXTURES[name].mass_and_entropy()
    assert mass == pytest.approx(1, abs=1e-9)
    assert toy_entropy(name) == pytest.approx(entropy, abs=6e-7)


@pytest.mark.parametrize(("noise", "entropy"), [(0.05, 0.2892), (0.2, 1.6775)])
def test_two_moons_of_other_noise_have_the_known_entropy(noise, entropy):
    mass, quadrature = moons(noise).mass_and_entropy()
    assert mass == pytest.approx(1, abs=1e-9)
    assert quadrature == pytest.approx(entropy, abs=5e-5)


def test_closed_form_entropies():
    assert toy_entropy("checkerboard") == pytest.approx(math.log(32), abs=1e-12)
    # h(x2) + h(x1 | x2) of two Gaussians, and twice ln(1/40) of the scaling.
    gaussian = 0.5 * math.log(2 * math.pi * math.e)
    parabola = (gaussian + math.log(4)) + gaussian - 2 * math.log(40)
    assert toy_entropy("parabola") == pytest.approx(parabola, abs=1e-12)
    assert parabola == pytest.approx(-3.1536, abs=5e-5)
    assert toy_entropy("pinwheel") is None
    assert toy_entropy("two_spirals") is None


def test_overlap_lowers_the_entropy_of_neighbouring_modes():
    """The disjoint values ln 8 + h(Gaussian) and thin rings are bounds, close and above."""
    sigma = 0.5 / 1.414
    disjoint = math.log(8) + math.log(2 * math.pi * math.e * sigma**2)
    assert 0.005 < disjoint - toy_entropy("eight_gaussians") < 0.007
    lengths = 2 * math.pi * np.array([0.75, 1.5, 2.25, 3.0])
    thin = math.log(4) + np.log(lengths).mean() + 0.5 * math.log(2 * math.pi * math.e * 0.08**2)
    assert 0.0005 < thin - toy_entropy("rings") < 0.0015


def assert_mean(values, expected):
    assert abs(values.mean() - expected) < 5 * standard_error(values)


def deviation(nll, entropy):
    """Distance of a Monte-Carlo entropy from the true one in standard errors."""
    if np.isinf(nll).any():  # a point outside the support
        return math.inf
    # A uniform density has an nll without spread: only its rounding is left.
    return abs(nll.mean() - entropy) / max(standard_error(nll), 1e-12)


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_samples_follow_the_density(name):
    x = toy(name, 6000, seed=1)
    assert deviation(-LOG_DENSITIES[name](x), toy_entropy(name)) < 4


@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_samples_that_follow_another_density_are_seen(name):
    """The check above rejects points that are 5 % too spread out."""
    x = 1.05 * toy(name, 6000, seed=1)
    assert deviation(-LOG_DENSITIES[name](x), toy_entropy(name)) > 4


def test_samples_of_modes_are_balanced():
    """Entropy alone cannot see a lost mode: count every one."""
    n = 8000
    x = toy("eight_gaussians", n, seed=2)
    modes = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    squares = np.floor(toy("checkerboard", n, seed=2) / 2).astype(int)
    square = (squares[:, 0] + 2) * 2 + (squares[:, 1] + 2) // 2
    for counts in (np.bincount(modes, minlength=8), np.bincount(square, minlength=8)):
        assert counts.size == 8
        assert np.abs(counts - n / 8).max() < 5 * math.sqrt(n * 7 / 64)
    ring = np.round(np.hypot(*toy("rings", n, seed=2).T) / 0.75)
    for k in range(1, 5):
        assert abs((ring == k).sum() - n / 4) < 5 * math.sqrt(n * 3 / 16)
    x = toy("two_moons", n, seed=2)  # arcs of mean (0, 2/π) and (1, 1/2 - 2/π)
    assert_mean(x[:, 0], 0.5)
    assert_mean(x[:, 1], 0.25)


def test_pinwheel_geometry():
    x = toy("pinwheel", 20_000, seed=3)
    assert_mean((x**2).sum(axis=1), 4 * (1 + 0.3**2 + 0.1**2))
    assert_mean(x[:, 0], 0)
    assert_mean(x[:, 1], 0)
    # Undoing the twist folds the five arms onto one direction; the other sense scatters them.
    radius, angle = np.hypot(*x.T) / 2, np.arctan2(x[:, 1], x[:, 0])
    folded = np.exp(5j * (angle + 0.25 * np.exp(radius)))
    scattered = np.exp(5j * (angle - 0.25 * np.exp(radius)))
    assert abs(np.angle(folded.mean())) < 0.05
    assert abs(folded.mean()) > 0.8
    assert abs(scattered.mean()) < 0.3
    arms = np.bincount(np.round((angle + 0.25 * np.exp(radius)) / (0.4 * np.pi)).astype(int) % 5)
    assert np.abs(arms - 4000).max() < 5 * math.sqrt(20_000 * 4 / 25)


def test_two_spirals_geometry():
    x = toy("two_spirals", 20_000, seed=4)
    # |x|² in closed form: E t² = 9π²/2, E t cos t = -4/(3π), E t sin t = 2 - 8/(9π²).
    t_cos, t_sin = -4 / (3 * math.pi), 2 - 8 / (9 * math.pi**2)
    square = 4.5 * math.pi**2 + 2 * 0.25 * (t_sin - t_cos) + 2 * 0.25 / 3
    assert_mean((x**2).sum(axis=1), square / 9 + 2 * 0.1**2)
    assert_mean(x[:, 0], 0)
    assert_mean(x[:, 1], 0)
    t = np.linspace(0, 3 * np.pi, 600)
    arm = np.stack([0.25 - t * np.cos(t), 0.25 + t * np.sin(t)], axis=1) / 3
    both = np.concatenate([arm, -arm])

    def distance(points):
        return np.sqrt(((points[:, None] - both) ** 2).sum(axis=2).min(axis=1))

    assert distance(x[:2000]).max() < 0.6
    assert distance(x[:2000] * [1, -1]).max() > 0.6  # the mirrored spiral


@pytest.mark.parametrize("name", TOYS)
def test_toy_is_float64_and_deterministic(name):
    x = toy(name, 101, seed=5)
    assert x.shape == (101, 2)
    assert x.dtype == np.float64
    assert x.flags.c_contiguous
    assert np.isfinite(x).all()
    assert toy(name, 1, seed=0).shape == (1, 2)
    np.testing.assert_array_equal(x, toy(name, 101, seed=5))
    assert (x != toy(name, 101, seed=6)).all(axis=1).any()


def test_unknown_toy_names_the_known_ones():
    for call in (lambda: toy("moons", 10, seed=0), lambda: toy_entropy("moons")):
        with pytest.raises(DatasetError, match=f"'moons'.*{', '.join(TOYS)}"):
            call()


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-3, 0), (10, -1)])
def test_toy_refuses_bad_sizes_and_seeds(n, seed):
    with pytest.raises(ConfigurationError, match=f"n is {n} and seed is {seed}"):
        toy("rings", n, seed)


# MNIST


@pytest.fixture(scope="module")
def data():
    return mnist(MNIST_FOLDER)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Nothing is found anywhere: an empty checkout, an empty cache, no $NPFLOW_DATA, no mirror."""
    monkeypatch.setattr(datasets, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", ())
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.delenv("NPFLOW_DATA", raising=False)
    return tmp_path


def copy_mnist(folder):
    return Path(shutil.copytree(MNIST_FOLDER, folder))


def test_mnist_split(data):
    assert data.train.shape == (50_000, 784)
    assert data.validation.shape == data.test.shape == (10_000, 784)
    assert data.train_labels.shape == (50_000,)
    assert data.validation_labels.shape == data.test_labels.shape == (10_000,)
    assert all(array.dtype == np.uint8 and array.flags.writeable for array in data)
    # Against the raw file, header of 16 bytes: training first, validation last.
    raw = gzip.decompress((MNIST_FOLDER / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert data.train.tobytes() + data.validation.tobytes() == raw


def test_mnist_labels(data):
    counts = np.bincount(np.concatenate([data.train_labels, data.validation_labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_images_belong_to_their_labels(data):
    """The nearest class mean is right for four of five: images and labels are in one order."""
    means = np.stack([data.train[data.train_labels == k].mean(axis=0) for k in range(10)])
    for images, labels in (
        (data.validation, data.validation_labels),
        (data.test, data.test_labels),
    ):
        scores = images @ means.T - 0.5 * (means**2).sum(axis=1)
        assert (scores.argmax(axis=1) == labels).mean() > 0.8
        assert (scores.argmax(axis=1) == np.roll(labels, 1)).mean() < 0.2


def test_readme_states_the_checksums():
    readme = (MNIST_FOLDER / "README.md").read_text()
    for name, checksums in MNIST_FILES.items():
        archive = hashlib.sha256((MNIST_FOLDER / name).read_bytes()).hexdigest()
        assert f"| `{name}` | `{archive}` |" in readme
        assert f"| `{name.removesuffix('.gz')}` | `{checksums.content}` |" in readme


def test_mnist_is_found_in_the_stated_order(places, monkeypatch):
    """Each place is taken when it is the first that holds all files; what was read tells which."""
    read = []
    monkeypatch.setattr(
        datasets,
        "_read_verified",
        lambda path, _: read.append(path.parent) or np.zeros((10_001, 1)),
    )

    def source():
        read.clear()
        mnist()
        assert len(read) == 4
        return read[0]

    cache = copy_mnist(places / "cache" / "npflow" / "mnist")
    assert source() == cache
    checkout = copy_mnist(places / "checkout" / "experiments" / "data" / "mnist")
    assert source() == checkout
    monkeypatch.setenv("NPFLOW_DATA", str(places / "elsewhere"))
    assert source() == checkout
    copy_mnist(places / "elsewhere")
    assert source() == places / "elsewhere"
    mnist(MNIST_FOLDER)
    assert read[-1] == MNIST_FOLDER


def test_given_folder_without_the_files_is_an_error(tmp_path, monkeypatch):
    """Even though $NPFLOW_DATA and the checkout hold them."""
    monkeypatch.setenv("NPFLOW_DATA", str(MNIST_FOLDER))
    with pytest.raises(DatasetError, match=f"{re.escape(str(tmp_path))} lacks train-images"):
        mnist(tmp_path)
    shutil.copy(MNIST_FOLDER / "train-images-idx3-ubyte.gz", tmp_path)
    with pytest.raises(DatasetError, match=r"lacks train-labels-idx1-ubyte\.gz, t10k-images"):
        mnist(str(tmp_path))


def test_damaged_files_are_named(tmp_path):
    folder = copy_mnist(tmp_path / "mnist")
    path = folder / "t10k-labels-idx1-ubyte.gz"
    packed = path.read_bytes()
    content = bytearray(gzip.decompress(packed))
    content[-1] ^= 1
    changed = hashlib.sha256(content).hexdigest()
    expected = MNIST_FILES[path.name].content
    for damaged, got in (
        (gzip.compress(content), f"sha256 {changed}"),
        (packed[:-100], "EOFError"),
        (packed[:1000] + bytes(64) + packed[1064:], "error"),
        (b"<html>not found</html>", "BadGzipFile"),
        (b"", f"sha256 {hashlib.sha256(b'').hexdigest()}"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError) as error:
            mnist(folder)
        for part in (str(path), expected, got, "restore the file"):
            assert part in str(error.value)
    path.write_bytes(gzip.compress(gzip.decompress(packed), compresslevel=1))
    np.testing.assert_array_equal(mnist(folder).test_labels[:3], [7, 2, 1])  # packed otherwise


def test_parse_idx():
    header = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    array = parse_idx(header + bytes(range(6)), "good")
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert array.dtype == np.uint8
    big_endian = parse_idx(bytes([0, 0, 8, 1, 0, 0, 1, 0]) + bytes(256), "256")
    assert big_endian.shape == (256,)
    for content, message in (
        (b"", r"bytes \(none\), expected 00 00 08"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "bytes 00 00 0d 01, expected"),
        (b"\x08\x00\x00\x02", "bytes 08 00 00 02, expected"),
        (header[:-1], "ends inside its IDX header"),
        (header + bytes(5), r"holds 5 bytes of data, expected 6 for its shape \(2, 3\)"),
        (header + bytes(7), "holds 7 bytes of data, expected 6"),
    ):
        with pytest.raises(DatasetError, match=f"^bad .*{message}"):
            parse_idx(content, "bad")


# Download, from a server on this machine


@pytest.fixture
def mirror(monkeypatch):
    """A mirror of the shipped archives; the yielded list collects the requested paths."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requests.append(self.path)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(Handler, directory=MNIST_FOLDER.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


@pytest.fixture
def shipped_archives(monkeypatch):
    """The checksums of the archives that the local mirror serves."""
    files = {
        name: checksums._replace(
            archive=hashlib.sha256((MNIST_FOLDER / name).read_bytes()).hexdigest()
        )
        for name, checksums in MNIST_FILES.items()
    }
    monkeypatch.setattr(datasets, "MNIST_FILES", files)


def test_download_falls_back_to_the_second_mirror_and_fills_the_cache(
    places, mirror, shipped_archives, monkeypatch, data
):
    url, requests = mirror
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (f"{url}/absent/", f"{url}/mnist/"))
    for array, expected in zip(mnist(), data, strict=True):
        np.testing.assert_array_equal(array, expected)
    cache = places / "cache" / "npflow" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(MNIST_FILES)
    assert {f"/mnist/{name}" for name in MNIST_FILES} <= set(requests)
    requests.clear()
    mnist()
    assert not requests  # the second time from the cache


def test_download_of_a_wrong_file_is_refused_and_leaves_nothing(places, mirror, monkeypatch):
    """The shipped archives are not those of the mirrors: their checksums differ."""
    url, _ = mirror
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (f"{url}/mnist/",))
    with pytest.raises(DatasetError, match="SHA256 hash of downloaded file"):
        mnist()
    assert not [path for path in (places / "cache").rglob("*") if path.is_file()]


def test_download_without_a_network_says_what_to_do(places, monkeypatch):
    with socket.socket() as unused:  # bound and not listening: a connection is refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(datasets, "MNIST_MIRRORS", (url,))
        with pytest.raises(DatasetError) as error:
            mnist()
    for part in (url, str(places / "checkout"), str(places / "cache"), "$NPFLOW_DATA"):
        assert part in str(error.value)


def test_mirrors_and_checksums_are_well_formed():
    assert all(re.fullmatch(r"https://\S+/", mirror) for mirror in datasets.MNIST_MIRRORS)
    sums = [digest for checksums in MNIST_FILES.values() for digest in checksums]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums)
    assert len(set(sums)) == 8


# Metrics


def test_bits_per_dim_of_known_codes():
    # Uniform over the 256 values of a pixel: 8 bits. Uniform over two of them: 1 bit.
    assert bits_per_dim(784 * math.log(256), 784) == pytest.approx(8, rel=1e-15)
    assert bits_per_dim(784 * math.log(2), 784) == pytest.approx(1, rel=1e-15)
    # The same uniform density seen over [0, 1) has nll 0, and 8 bits must be added.
    assert bits_per_dim(0.0, 784) + 8 == pytest.approx(bits_per_dim(784 * math.log(256), 784))
    assert nats(1.85, 784) == pytest.approx(1005.34, abs=0.005)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nats_inverts_bits_per_dim(dtype):
    nll = np.array([[-3.0, 0.0], [1000.0, 1e-3]], dtype=dtype)
    bits = bits_per_dim(nll, 12)
    assert bits.dtype == dtype
    np.testing.assert_allclose(nats(bits, 12), nll, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("convert", [bits_per_dim, nats])
def test_features_must_be_positive(convert):
    with pytest.raises(ConfigurationError, match="features is 0"):
        convert(1.0, 0)


def test_standard_error():
    # Values 1, 2, 3, 4: unbiased variance 5/3 over N = 4.
    assert standard_error([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 12), rel=1e-15)
    offset = np.array([1, 2, 3, 4], dtype=np.float32) + np.float32(2**22)
    assert standard_error(offset) == pytest.approx(math.sqrt(5 / 12), rel=1e-12)
    assert standard_error(np.full(7, 3.0)) == 0
    for values in ([], [1.0], [[1.0, 2.0]], 3.0):
        with pytest.raises(ShapeError, match=r"expected \(N,\) with N >= 2"):
            standard_error(values)
    with pytest.raises(NonFiniteError, match="2 of 3 values"):
        standard_error([np.nan, 1.0, -np.inf])
