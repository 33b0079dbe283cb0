"""Runs the real CuPy, and the CUDA kernels given to it, without a GPU. See README.md."""

from __future__ import annotations

import atexit
import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .counting import count, counters, overruns, reset_counters
from .settings import parse_order, settings

__all__ = [
    "check_memory",
    "count",
    "counters",
    "install",
    "installed",
    "reset_counters",
    "thread_order",
]


def installed() -> bool:
    """Whether CuPy, once imported in this process, runs on the stand-in device."""
    return any(isinstance(finder, _CupyFinder) for finder in sys.meta_path)


def install() -> None:
    """Makes every later ``import cupy`` of this process come with the stand-in device."""
    if installed():
        return
    if "cupy" in sys.modules or "cupy_backends" in sys.modules:
        raise RuntimeError("cuda_on_cpu.install() comes too late: CuPy is already imported")
    sys.meta_path.insert(0, _CupyFinder())


class _CupyFinder(importlib.abc.MetaPathFinder):
    """Finds cupy where it is, and surrounds its import with what the stand-in device needs."""

    def find_spec(self, name, path=None, target=None):
        if name != "cupy":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        original = spec.loader.exec_module

        def exec_module(module):
            from . import cupy_hooks

            cupy_hooks.before_import()
            original(module)
            cupy_hooks.after_import(module)
            reset_counters()
            atexit.register(_report)

        spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """Runs the kernels inside the block with another order of threads, as `--order`."""
    parse_order(order)
    before, settings.order = settings.order, order
    try:
        yield
    finally:
        settings.order = before


def check_memory() -> list[str]:
    """Checks the guard zones of all that is allocated now: a message for each write outside."""
    from .device import check_memory

    return check_memory()


def _report() -> None:
    check_memory()
    if settings.report:
        path = Path(settings.report)
        if os.environ.get("CUDA_ON_CPU_MAIN") != str(os.getpid()):
            path = path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "command": sys.argv,
                    "order": settings.order,
                    **counters(),
                    "overrun_messages": overruns,
                },
                indent=1,
            )
        )
