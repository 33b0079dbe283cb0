"""Data: eight two-dimensional toy densities and MNIST.

The toy densities have the geometry that the literature plots and reports numbers for, but every
point is drawn independently (no evenly spaced grids, no fixed count a mode), so that the entropy
of the density is the floor of an expected test nll.
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from npflow.errors import ConfigurationError, DatasetError

Points = NDArray[np.float64]


# Two-dimensional toy densities


def toy(name: str, n: int, seed: int) -> Points:
    """Draw n independent points of the toy density `name`; the same seed gives the same points.

    Returns:
        Array (n, 2) of float64.

    Raises:
        DatasetError: no toy density has that name.
        ConfigurationError: n is less than 1 or seed is negative.
    """
    density = _toy_density(name)
    if n < 1 or seed < 0:
        raise ConfigurationError(
            f"toy({name!r}): n is {n} and seed is {seed}, expected n >= 1 and seed >= 0"
        )
    return density.sample(n, Generator(PCG64(seed)))


def toy_entropy(name: str) -> float | None:
    """Differential entropy of the toy density `name` in nats, None where it is not known.

    No model's expected test nll can be lower.

    Raises:
        DatasetError: no toy density has that name.
    """
    return _toy_density(name).entropy


def two_moons(n: int, rng: Generator, noise: float = 0.1) -> Points:
    """Two interleaved half circles of radius 1 with Gaussian noise (scikit-learn's make_moons).

    The upper arc is (cos t, sin t), the lower one (1 - cos t, 1/2 - sin t), t uniform on [0, π].
    """
    t = rng.uniform(0.0, np.pi, n)
    x, y = np.cos(t), np.sin(t)
    lower = rng.integers(2, size=n) == 1
    arcs = np.stack([np.where(lower, 1.0 - x, x), np.where(lower, 0.5 - y, y)], axis=1)
    return arcs + noise * rng.standard_normal((n, 2))


def eight_gaussians(n: int, rng: Generator) -> Points:
    """Eight Gaussians, σ 0.5, on a circle of radius 4, all divided by 1.414 (FFJORD).

    The divisor is 1.414 and not √2: this moves the entropy by 2 ln(√2 / 1.414) = 0.0003 nats.
    Neighbours overlap a little, hence 2.8319 nats and not ln 8 + ln(2πe σ²) = 2.8382.
    """
    angle = rng.integers(8, size=n) * (np.pi / 4.0)
    centres = 4.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centres + 0.5 * rng.standard_normal((n, 2))) / 1.414


def checkerboard(n: int, rng: Generator) -> Points:
    """Uniform on the eight 2 x 2 dark squares of a 4 x 4 board over [-4, 4]² (FFJORD)."""
    x = rng.uniform(-2.0, 2.0, n)
    # Square of each column: its lower or its upper one, shifted up by one in odd columns.
    y = rng.uniform(0.0, 1.0, n) - 2.0 * rng.integers(2, size=n) + np.floor(x) % 2.0
    return 2.0 * np.stack([x, y], axis=1)


def rings(n: int, rng: Generator) -> Points:
    """Four equally likely circles of radius 3/4, 3/2, 9/4 and 3 with Gaussian noise 0.08 (FFJORD).

    The circles carry equal mass, so the inner ones are denser.
    """
    radius = 0.75 * rng.integers(1, 5, size=n)
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    circles = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return circles + 0.08 * rng.standard_normal((n, 2))


def pinwheel(n: int, rng: Generator) -> Points:
    """Five Gaussian arms, each twisted by an angle that grows along it (FFJORD).

    An arm point (a, b) with a ~ N(1, 0.3²), b ~ N(0, 0.1²) of arm k turns clockwise by
    2πk/5 + exp(a)/4 and is doubled.
    """
    a = 1.0 + 0.3 * rng.standard_normal(n)
    b = 0.1 * rng.standard_normal(n)
    angle = rng.integers(5, size=n) * (2.0 * np.pi / 5.0) + 0.25 * np.exp(a)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2.0 * np.stack([a * cos + b * sin, b * cos - a * sin], axis=1)


def two_spirals(n: int, rng: Generator) -> Points:
    """Two interleaved spirals of one and a half turns, one the other turned by π (FFJORD).

    ± (u - t cos t, v + t sin t) / 3 with t = 3π√U, u and v uniform on [0, 1/2], and Gaussian
    noise 0.1.
    """
    t = 3.0 * np.pi * np.sqrt(rng.uniform(0.0, 1.0, n))
    u, v = rng.uniform(0.0, 0.5, (2, n))
    sign = 1.0 - 2.0 * rng.integers(2, size=n)
    arms = sign[:, None] * np.stack([u - t * np.cos(t), v + t * np.sin(t)], axis=1) / 3.0
    return arms + 0.1 * rng.standard_normal((n, 2))


def swiss_roll(n: int, rng: Generator) -> Points:
    """One spiral (t cos t, t sin t), t uniform on [3π/2, 9π/2], noise 1, divided by 5 (FFJORD)."""
    t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, n)
    spiral = np.stack([t * np.cos(t), t * np.sin(t)], axis=1)
    return (spiral + rng.standard_normal((n, 2))) / 5.0


def parabola(n: int, rng: Generator) -> Points:
    """A bent Gaussian: x2 ~ N(0, 4²), x1 ~ N(x2²/4, 1), both divided by 40.

    The density of MAF's figure 1 (arXiv:1705.07057) with standard deviation 4 where the paper
    has variance 4, and scaled.
    """
    x2 = 4.0 * rng.standard_normal(n)
    x1 = 0.25 * x2**2 + rng.standard_normal(n)
    return np.stack([x1, x2], axis=1) / 40.0


class Toy(NamedTuple):
    """A toy density: its sampler and its entropy in nats, None where it is not known."""

    sample: Callable[[int, Generator], Points]
    entropy: float | None


# The decimals are quadratures of -p log p, each a Gaussian mixture along a curve; the tests redo
# them and the arithmetic of the others.
TOYS = {
    "two_moons": Toy(two_moons, 1.007585),
    "eight_gaussians": Toy(eight_gaussians, 2.831880),
    "checkerboard": Toy(checkerboard, math.log(32.0)),  # uniform on an area of 32
    "rings": Toy(rings, 2.623183),
    "pinwheel": Toy(pinwheel, None),
    "two_spirals": Toy(two_spirals, None),
    "swiss_roll": Toy(swiss_roll, 2.669646),
    # Two Gaussians, σ 4 and 1, bent by a shear of determinant 1, scaled by 1/40 in both axes.
    "parabola": Toy(parabola, math.log(2.0 * math.pi * math.e * 4.0 / 40.0**2)),
}


def _toy_density(name: str) -> Toy:
    if name not in TOYS:
        raise DatasetError(f"no toy density is named {name!r}; choose one of {', '.join(TOYS)}")
    return TOYS[name]


# MNIST


class MNIST(NamedTuple):
    """Handwritten digits of 28 x 28 pixels, row by row; every array is uint8."""

    train: NDArray[np.uint8]  # (50000, 784), pixels 0..255
    train_labels: NDArray[np.uint8]  # (50000,), digits 0..9
    validation: NDArray[np.uint8]  # (10000, 784)
    validation_labels: NDArray[np.uint8]  # (10000,)
    test: NDArray[np.uint8]  # (10000, 784)
    test_labels: NDArray[np.uint8]  # (10000,)


class Checksums(NamedTuple):
    """The sha256 of one IDX file and of the archive that the mirrors serve it in."""

    content: str
    archive: str


# A .gz depends on the program that packed it, its content does not: what is read is judged by
# its content, and only a download, which arrives packed, by its archive.
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": Checksums(
        content="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        archive="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": Checksums(
        content="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        archive="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": Checksums(
        content="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        archive="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": Checksums(
        content="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        archive="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CHECKOUT = Path(__file__).resolve().parents[1]
VALIDATION = 10_000  # the last images of the training file


def mnist(folder: str | os.PathLike[str] | None = None) -> MNIST:
    """MNIST as 50,000 training, 10,000 validation and 10,000 test images.

    The validation images are the last 10,000 of the training file. Without `folder`, the first of
    these that holds all four files is read: the folder $NPFLOW_DATA, experiments/data/mnist of the
    checkout, the user's cache; else the files are downloaded into the cache. Their content is
    verified by sha256 wherever it comes from.

    Args:
        folder: where the four *-ubyte.gz files are; no other place is then looked at.

    Raises:
        DatasetError: the folder lacks a file, a file is damaged, or the download failed.
    """
    source = _find_mnist() if folder is None else Path(folder)
    if missing := _missing_files(source):
        raise DatasetError(
            f"the MNIST folder {source} lacks {', '.join(missing)}; put the four *-ubyte.gz files "
            "there, or call mnist() without a folder to look elsewhere and download them"
        )
    images, labels, test_images, test_labels = (
        _read_verified(source / name, checksums.content) for name, checksums in MNIST_FILES.items()
    )
    images = images.reshape(len(images), -1)
    return MNIST(
        train=images[:-VALIDATION],
        train_labels=labels[:-VALIDATION],
        validation=images[-VALIDATION:],
        validation_labels=labels[-VALIDATION:],
        test=test_images.reshape(len(test_images), -1),
        test_labels=test_labels,
    )


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, writable.

    Header: two zero bytes, the type code (0x08 is uint8), the number of dimensions, then each
    dimension as a big-endian uint32; the data follow in C order.

    Raises:
        DatasetError: the magic number is another, or the length contradicts the dimensions.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DatasetError(
            f"{name} begins with the bytes {content[:4].hex(' ') or '(none)'}, expected 00 00 08 "
            "and the number of dimensions; give an IDX file of unsigned bytes"
        )
    data_start = 4 + 4 * content[3]
    header = content[4:data_start]
    if len(header) < 4 * content[3]:
        raise DatasetError(f"{name} ends inside its IDX header; get the file again")
    shape = struct.unpack(f">{content[3]}I", header)
    if len(content) - data_start != math.prod(shape):
        raise DatasetError(
            f"{name} holds {len(content) - data_start} bytes of data, expected "
            f"{math.prod(shape)} for its shape {shape}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=data_start).reshape(shape).copy()


def _missing_files(folder: Path) -> list[str]:
    return [name for name in MNIST_FILES if not (folder / name).is_file()]


def _find_mnist() -> Path:
    """The first of the known places that holds MNIST; the user's cache, filled, if none does."""
    cache = Path(pooch.os_cache("npflow")) / "mnist"
    places = [CHECKOUT / "experiments" / "data" / "mnist", cache]
    if environment := os.environ.get("NPFLOW_DATA"):
        places.insert(0, Path(environment))
    for place in places:
        if not _missing_files(place):
            return place
    for name, checksums in MNIST_FILES.items():
        _download(name, checksums.archive, cache, places)
    return cache


def _download(name: str, sha256: str, cache: Path, places: list[Path]) -> None:
    """Bring one file into the cache from the first mirror that has it, verified, in one move."""
    failures = []
    for mirror in MNIST_MIRRORS:
        try:
            pooch.retrieve(mirror + name, known_hash=f"sha256:{sha256}", fname=name, path=cache)
        except (OSError, ValueError) as error:  # no answer or a full disk; a wrong checksum
            failures.append(f"{mirror}: {error}")
        else:
            return
    raise DatasetError(
        f"MNIST is in none of {', '.join(map(str, places))}, and {name} could not be downloaded "
        f"({'; '.join(failures)}); get the four *-ubyte.gz files elsewhere and pass their folder "
        "or name it in $NPFLOW_DATA"
    )


def _read_verified(path: Path, sha256: str) -> NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
        got = f"sha256 {hashlib.sha256(content).hexdigest()}"
    except (OSError, EOFError, zlib.error) as error:
        content, got = b"", f"{type(error).__name__}: {error}"
    if got != f"sha256 {sha256}":
        raise DatasetError(
            f"{path} is damaged or unreadable: expected content of sha256 {sha256}, got {got}; "
            "restore the file, or delete it and call mnist() without a folder to look elsewhere "
            "and download it"
        )
    return parse_idx(content, str(path))
