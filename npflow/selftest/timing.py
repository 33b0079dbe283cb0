"""How fast the memory-bound kernels move their bytes, beside how fast the device copies.

A kernel has to read every array argument and to write every result, and what it changes in place
it writes as well. Less than the rate of a copy means that time goes elsewhere: into arithmetic,
into reading something twice, or into launches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npflow.backend import Array, Backend
from npflow.selftest.comparison import arrays_of, on_arrays, rounded
from npflow.selftest.examples import examples

ROWS, FEATURES = 127, 192  # of an example, whose batch is repeated until it is large enough
GROUPS, CALLS = 3, 4  # median over groups of a few calls in a row


class Rate(NamedTuple):
    """What one call takes."""

    seconds: float
    bytes: int

    @property
    def gb_per_second(self) -> float:
        return self.bytes / self.seconds / 1e9


def copy_rate(backend: Backend, megabytes: int) -> Rate:
    """A copy that moves so much: half of it is read, half written."""
    source = backend.xp.zeros(megabytes * 10**6 // 2, np.uint8)
    target = backend.xp.ones_like(source)
    seconds = _seconds(backend, lambda: backend.xp.copyto(target, source))
    return Rate(seconds, 2 * source.nbytes)


def kernel_rate(backend: Backend, name: str, megabytes: int) -> Rate:
    """The kernel's first example with its batch repeated until so much is moved, or a bit more."""
    xp, kernel = backend.xp, getattr(backend.kernels, name)
    example = rounded(examples(ROWS, FEATURES)[name][0], backend.dtype)

    def on_device(times: int) -> Any:
        return on_arrays(lambda a: _repeated(backend, xp.asarray(a), times), example)

    small = on_device(1)
    results = arrays_of(kernel(*small), xp.ndarray)
    before, after = arrays_of(on_device(1), xp.ndarray), arrays_of(small, xp.ndarray)
    written = [not bool((a == b).all()) for a, b in zip(after, before, strict=True)]

    def moved(arguments: Any, results: list[Array]) -> int:
        arrays = arrays_of(arguments, xp.ndarray)
        changed = [a for a, changes in zip(arrays, written, strict=True) if changes]
        return sum(a.nbytes for a in (*arrays, *changed, *results))

    large = on_device(-(-megabytes * 10**6 // moved(small, results)))
    bytes = moved(large, arrays_of(kernel(*large), xp.ndarray))
    return Rate(_seconds(backend, lambda: kernel(*large)), bytes)


def _repeated(backend: Backend, array: Array, times: int) -> Array:
    """array with its rows repeated, if it has those of a batch, else a copy."""
    is_batch = len(array) % ROWS == 0  # a prime number, of which the features are no multiple
    return backend.xp.tile(array, (times if is_batch else 1, *(1 for _ in array.shape[1:])))


def _seconds(backend: Backend, call: Callable[[], Any]) -> float:
    call()
    elapsed = _device_seconds if backend.on_device else _host_seconds
    return statistics.median(elapsed(backend, call) for _ in range(GROUPS)) / CALLS


def _host_seconds(backend: Backend, call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return time.perf_counter() - started


def _device_seconds(backend: Backend, call: Callable[[], Any]) -> float:
    """By the device's own clock: the calls wait in its queue, one behind the other."""
    cuda = backend.xp.cuda
    start, stop = cuda.Event(), cuda.Event()
    start.record()
    for _ in range(CALLS):
        call()
    stop.record()
    stop.synchronize()
    return cuda.get_elapsed_time(start, stop) / 1e3
