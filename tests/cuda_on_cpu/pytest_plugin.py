"""Of pytest on the stand-in device: fails tests that write outside allocations, offers counters.

``python tests/cuda_on_cpu -- pytest`` loads it by itself.
"""

from __future__ import annotations

import sys

import pytest

import cuda_on_cpu
from cuda_on_cpu import counting
from cuda_on_cpu.settings import settings


def pytest_report_header() -> str:
    guards = "on" if settings.guards else "off"
    return (
        "cuda_on_cpu: CuPy runs on the CPU stand-in device "
        f"(thread order {settings.order}, guard zones {guards})"
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """A test that writes outside of an allocation fails, even if it asserts nothing about it."""
    before = len(counting.overruns)
    outcome = yield
    if "cupy" in sys.modules and outcome.excinfo is None:
        cuda_on_cpu.check_memory()
        new = counting.overruns[before:]
        if new:
            outcome.force_exception(
                AssertionError("\n".join(["memory was overrun on the stand-in device:", *new]))
            )


@pytest.fixture
def device_counters():
    """``with device_counters() as c: step()``: see cuda_on_cpu.count."""
    return cuda_on_cpu.count
