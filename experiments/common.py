"""What all experiments share: options, the run's folder, its summary, and how errors are shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import tyro

from npflow import checkpoint
from npflow.backend import get_backend
from npflow.errors import CheckpointError, ConfigurationError, NpflowError
from npflow.flow import Flow

MODEL = "model.safetensors"


@dataclass
class Options:
    """The options of every experiment."""

    resumable: ClassVar[bool] = True

    backend: Literal["auto", "reference", "numpy", "cupy"] = "auto"
    """Where to compute; auto is cupy where a CUDA device answers, else numpy."""
    epochs: int | None = None
    """Passes over the training data (default: the configuration's)."""
    seed: int = 0
    """Of the parameters, the order of the batches, the noise and the samples."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    memory: Literal["store", "recompute", "invert"] = "store"
    """What a chain keeps for the gradient."""
    out: Path | None = None
    """Folder for metrics, summary, checkpoint and figures (default: runs/NAME)."""
    resume: bool = False
    """Continue the run in --out."""
    smoke: bool = False
    """A few hundred examples and a narrow network: is everything there? Done in seconds."""


SomeOptions = TypeVar("SomeOptions", bound=Options)


def run(main: Callable[[SomeOptions], None], options: type[SomeOptions]) -> None:
    """Parse the command line and call main; a misuse ends with status 2 and one plain message."""
    parsed = tyro.cli(options, description=main.__doc__)
    try:
        if parsed.epochs is not None and parsed.epochs < 1:
            raise ConfigurationError(f"--epochs is {parsed.epochs}; expected 1 or more")
        if parsed.seed < 0:
            raise ConfigurationError(f"--seed is {parsed.seed}; expected 0 or more")
        get_backend(parsed.backend)  # before any data is read or folder made
        main(parsed)
    except (NpflowError, OSError, MemoryError) as error:  # OSError: a figure on a full disk, say
        sys.exit(_fail(str(error) or "out of memory", 2))
    except KeyboardInterrupt:
        advice = "; the same command with --resume goes on from here" if parsed.resumable else ""
        sys.exit(_fail(f"stopped{advice}", 130))


def _fail(message: str, status: int) -> int:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return status


def make_folder(options: Options, name: str) -> Path:
    """The run's folder, made unless a run is resumed. Raises CheckpointError if it cannot be."""
    folder = options.out if options.out is not None else Path("runs") / name
    if options.resume:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}") from None
    checkpoint.write_bytes(folder / "command.txt", (" ".join(sys.argv) + "\n").encode())
    return folder


def write_summary(folder: Path, flow: Flow, options: Any, results: dict[str, Any]) -> None:
    """summary.json, also printed: results, the flow's size and backend, and the options."""
    summary = results | {
        "parameters": flow.params.count,
        "backend": flow.backend.name,
        "dtype": str(flow.backend.dtype),
        "configuration": _plain(options),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    text = json.dumps(summary, indent=2)
    checkpoint.write_bytes(folder / "summary.json", (text + "\n").encode())
    print(text)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path | np.dtype):
        return str(value)
    return value
