"""What the self-test prints and writes."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from npflow.backend import Backend
from npflow.selftest.comparison import Comparison
from npflow.selftest.timing import Rate
from npflow.selftest.training import Training


def describe(backend: Backend) -> dict[str, str]:
    """The device and the versions of what runs on it."""
    found = {"npflow": version("npflow"), "backend": backend.name}
    if backend.on_device:
        cuda = backend.xp.cuda
        properties = cuda.runtime.getDeviceProperties(cuda.Device().id)
        found |= {
            "device": properties["name"].decode(),
            "memory": f"{properties['totalGlobalMem'] / 2**30:.1f} GiB",
            "compute capability": f"{properties['major']}.{properties['minor']}",
            "driver's CUDA": _cuda_version(cuda.runtime.driverGetVersion()),
            "CUDA runtime": _cuda_version(cuda.get_local_runtime_version()),
            "CuPy": backend.xp.__version__,
        }
    else:
        found |= {
            "device": _processor(),
            "processors": str(os.cpu_count()),
            "Numba": version("numba"),
        }
    return found | {"NumPy": np.__version__, "Python": platform.python_version()}


def as_json(results: dict[str, Any]) -> str:
    return json.dumps(_plain(results), indent=2, allow_nan=False) + "\n"


def print_machine(machine: dict[str, str]) -> None:
    for key, value in machine.items():
        print(f"{key:<20}{value}")


def print_kernel_heading(copy: Rate | None) -> None:
    heading = f"\n{'largest errors of kernels':<36}{'float32':>9}{'float64':>9}{'':9}"
    if copy is not None:
        print(f"{'copy':<20}{copy.gb_per_second:.1f} GB/s, {copy.bytes / 1e6:.0f} MB")
        heading += f"{'float32: ms':>12}{'GB/s':>8}{'of copy':>9}"
    print(heading)


def print_kernel(
    name: str, result: dict[str, Comparison], rate: Rate | None, copy: Rate | None
) -> None:
    line = f"{name:<36}" + "".join(f"{r.error:9.1e}" for r in result.values()) + _verdict(result)
    if rate is not None and copy is not None:
        part = rate.gb_per_second / copy.gb_per_second
        line += f"{1e3 * rate.seconds:12.3f}{rate.gb_per_second:8.1f}{part:9.0%}"
    print(line, flush=True)
    _print_problems(result)


def print_training_heading(other: str) -> None:
    print(f"\n{f'difference of losses from {other}':<36}{'float32':>9}{'float64':>9}{'':9}", end="")
    print(f"{'float32: ms a step':>20}{'launches of our kernels a step':>32}")


def print_training(name: str, result: dict[str, Training]) -> None:
    line = f"{name:<36}" + "".join(f"{r.difference:9.1e}" for r in result.values())
    single = result["float32"]
    launches = single.launches_per_step
    line += _verdict(result) + f"{1e3 * single.seconds_per_step:20.2f}"
    print(line + f"{'-' if launches is None else f'{launches:.1f}':>32}", flush=True)
    _print_problems(result)


def _verdict(result: dict[str, Any]) -> str:
    return "  ok     " if all(r.ok for r in result.values()) else "  FAILED "


def _print_problems(result: dict[str, Any]) -> None:
    for dtype, r in result.items():
        if r.problem is not None:
            print(f"    {dtype}: {r.problem}")
        elif not r.ok:
            print(f"    {dtype}: more than {r.tolerance:.1e}")


def _plain(value: Any) -> Any:
    """For JSON: records as dictionaries, and null for numbers that it has no words for."""
    if isinstance(value, Comparison | Training):
        return _plain(value._asdict() | {"ok": value.ok})
    if isinstance(value, Rate):
        return value._asdict() | {"gb_per_second": value.gb_per_second}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
