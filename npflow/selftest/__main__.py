"""Check npflow on this machine: every kernel against NumPy, short trainings, and speed.

Ends with status 0 if all is well, 1 if a check failed, 2 if the backend cannot run here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from npflow import checkpoint
from npflow.backend import Backend, get_backend
from npflow.errors import ConfigurationError, NpflowError
from npflow.selftest import report
from npflow.selftest.comparison import Comparison, compare
from npflow.selftest.examples import MEMORY_BOUND, SIZES, examples
from npflow.selftest.timing import Rate, copy_rate, kernel_rate
from npflow.selftest.training import FLOWS, Training, compare_training, other_backend

MEGABYTES = {"reference": 64, "numpy": 64, "cupy": 256}  # more than caches hold


@dataclass
class Options:
    backend: Literal["auto", "numpy", "cupy"] = "auto"
    """What to check; auto is cupy where a CUDA device answers, else numpy."""
    out: Path | None = None
    """A JSON file for the results."""
    megabytes: int | None = None
    """What a call that is timed moves (default: 256 on a GPU, else 64); 0: time no kernels."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = tyro.cli(Options, description=__doc__, args=arguments)
    try:
        if options.megabytes is not None and options.megabytes < 0:
            raise ConfigurationError(f"--megabytes is {options.megabytes}; expected 0 or more")
        results = check(get_backend(options.backend), options.megabytes)
        if options.out is not None:
            checkpoint.write_bytes(options.out, report.as_json(results).encode())
    except NpflowError as error:
        print(f"npflow.selftest: {error}", file=sys.stderr)
        return 2
    return 0 if results["ok"] else 1


def check(backend: Backend, megabytes: int | None = None) -> dict[str, Any]:
    """Everything on the backend in both dtypes, printed as it is found; speed in float32."""
    megabytes = MEGABYTES[backend.name] if megabytes is None else megabytes
    single, double = (get_backend(backend, dtype) for dtype in ("float32", "float64"))
    machine = report.describe(backend)
    report.print_machine(machine)

    copy = copy_rate(single, megabytes) if megabytes else None
    report.print_kernel_heading(copy)
    compared: dict[str, dict[str, Comparison]] = {}
    rates: dict[str, Rate] = {}
    for name in examples(*SIZES[0]):
        result = {"float32": check_kernel(single, name), "float64": check_kernel(double, name)}
        if copy is not None and name in MEMORY_BOUND:
            try:
                rates[name] = kernel_rate(single, name, megabytes)
            except Exception as error:  # out of memory, say
                problem = f"when timed: {type(error).__name__}: {error}"
                result["float32"] = result["float32"]._replace(problem=problem)
        report.print_kernel(name, result, rates.get(name), copy)
        compared[name] = result

    report.print_training_heading(other_backend(backend).name)
    trained: dict[str, dict[str, Training]] = {}
    for name in FLOWS:
        trained[name] = {str(b.dtype): compare_training(b, name) for b in (single, double)}
        report.print_training(name, trained[name])

    pairs: list[dict[str, Any]] = [*compared.values(), *trained.values()]
    results = [result for pair in pairs for result in pair.values()]
    failed = sum(not result.ok for result in results)
    print(f"\n{f'{failed} FAILED' if failed else 'all ok'}, of {len(results)} checks")
    return {
        "ok": failed == 0, "machine": machine, "kernels": compared, "training": trained,
        "copy": copy, "rates": rates,
    }  # fmt: skip


def check_kernel(backend: Backend, name: str) -> Comparison:
    """The worst of the kernel's examples."""
    calls = (arguments for size in SIZES for arguments in examples(*size)[name])
    results = [compare(backend, name, arguments) for arguments in calls]
    return max(results, key=lambda result: (not result.ok, result.error))


if __name__ == "__main__":
    sys.exit(main())
