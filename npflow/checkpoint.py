"""Safetensors files written whole or not at all, and read without running anything from them."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from npflow.errors import CheckpointError

VERSION = 1


def write(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], kind: str, header: dict[str, Any]
) -> None:
    """Write arrays and a JSON header to path, replacing it in one step.

    Raises CheckpointError if that fails (a full disk, no permission); an older file then stays.
    """
    text = json.dumps(header)
    metadata = {"format": kind, "version": str(VERSION), "header": text}
    metadata["crc32"] = _checksum(arrays, text)
    write_bytes(path, save(arrays, metadata))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file at path by content in one step. Raises CheckpointError if that fails."""
    temporary = Path(f"{path}.part")  # a fixed name: what a killed process left is written over
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # not there any more if all went well
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; what was there before is unchanged"
        ) from error


def read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file written by `write` with the same kind.

    Raises CheckpointError if the file is missing, damaged, foreign or of a later version.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = file.keys() if metadata.get("format") == kind else ()
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); restore it from a copy"
        ) from None
    if metadata.get("format") != kind:
        raise CheckpointError(
            f"{path} holds {metadata.get('format', 'arrays of another program')!r}; "
            f"expected {kind!r}"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} has version {metadata.get('version')}; this npflow reads version {VERSION}"
        )
    if metadata.get("crc32") != _checksum(arrays, metadata.get("header", "")):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong; restore it from a copy")
    return arrays, json.loads(metadata["header"])


def _checksum(arrays: dict[str, np.ndarray], header: str) -> str:
    crc = zlib.crc32(header.encode())
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, crc)
    return f"{crc:08x}"
