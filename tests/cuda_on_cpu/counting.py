"""Exact counts of what the device was asked to do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

_counts: dict = {}
live_bytes = 0
overruns: list[str] = []  # messages about writes outside of allocations


def reset_counters() -> None:
    """Sets every counter to zero; peak_bytes starts again from what is allocated now."""
    _counts.clear()
    for name in ("h2d", "d2h", "d2d"):
        _counts[name] = _counts[f"{name}_bytes"] = 0
    _counts.update(
        launches=0, kernels={}, library_calls={}, syncs=0, allocations=0, device_mallocs=0
    )
    _counts.update(peak_bytes=live_bytes, overruns=0)


def counters() -> dict:
    """A snapshot.

    h2d, d2h, d2d and their _bytes: copies. launches, and kernels by name. library_calls: cuBLAS
    calls by name. syncs: stream, event and device synchronisations. allocations: by CuPy's arrays;
    device_mallocs: by its memory pool. peak_bytes: highest sum of live array memory. overruns:
    writes seen in guard zones.
    """
    return copy.deepcopy(_counts)


@contextlib.contextmanager
def count() -> Iterator[dict]:
    """``with count() as c: step()`` leaves in c what the block itself did."""
    before, difference = counters(), {}
    _counts["peak_bytes"] = live_bytes
    try:
        yield difference
    finally:
        for name, value in _counts.items():
            if name == "peak_bytes":
                difference[name] = value
            elif isinstance(value, dict):
                changes = {key: n - before[name].get(key, 0) for key, n in value.items()}
                difference[name] = {key: n for key, n in changes.items() if n}
            else:
                difference[name] = value - before[name]
        _counts["peak_bytes"] = max(before["peak_bytes"], _counts["peak_bytes"])


def add(name: str, amount: int = 1) -> None:
    _counts[name] += amount


def add_named(group: str, name: str) -> None:
    _counts[group][name] = _counts[group].get(name, 0) + 1


def add_live(size: int) -> None:
    global live_bytes
    live_bytes += size
    _counts["peak_bytes"] = max(_counts["peak_bytes"], live_bytes)


def add_overrun(message: str) -> None:
    overruns.append(message)
    _counts["overruns"] += 1


reset_counters()
