"""What the stand-in device was made for.

Anything else is refused: it rests on the insides of one version of CuPy.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import sys

SUPPORTED = (
    "CuPy 14.2.* (cupy-cuda13x or cupy-cuda12x) on CPython 3.11 or later, Linux x86-64, with g++"
)


class UnsupportedError(RuntimeError):
    """This machine, interpreter or CuPy is not one that the stand-in device was made for."""


def check_platform() -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{python} on {platform.system()} {platform.machine()}"
    if not (
        system.startswith("CPython")
        and sys.version_info >= (3, 11)
        and system.endswith("Linux x86_64")
    ):
        raise UnsupportedError(f"cuda_on_cpu supports {SUPPORTED}; this is {system}")
    versions = {}
    for distribution in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[distribution] = importlib.metadata.version(distribution)
    if (
        len(versions) != 1
        or "cupy" in versions
        or not next(iter(versions.values())).startswith("14.2.")
    ):
        raise UnsupportedError(
            f"cuda_on_cpu supports {SUPPORTED}; installed is {versions or 'no CuPy'}"
        )
    if not shutil.which("g++"):
        raise UnsupportedError(f"cuda_on_cpu supports {SUPPORTED}; g++ is not installed")
