"""Compiling a kernel, and running it on several threads with the same result for any number."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

from npflow.errors import ConfigurationError
from npflow.kernels.cpu.heap import keep_freed_memory

# Below this many elements with an exp each (about 40 us), a second thread gains nothing.
THRESHOLD = 1 << 16
# A kernel that only moves, multiplies and adds counts this many elements as one.
CHEAP = 8

# Of all sources of this folder, by which compiled kernels are told apart.
_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def compiled(*fastmath: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile for the CPU, without the GIL, cached on disk, with these fast-math flags.

    Numba takes a kernel from its cache as long as the kernel's own file is unchanged. These kernels
    inline functions of other files, so here any change in the folder makes them anew.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        flags = set(fastmath) or False
        dispatcher = njit(cache=True, nogil=True, error_model="numpy", fastmath=flags)(function)
        cache_file = getattr(dispatcher._cache, "_cache_file", None)
        if cache_file is not None:  # Numba's own; there is no public way to add to its stamp
            cache_file._source_stamp = (cache_file._source_stamp, _SOURCES)
        return dispatcher

    return decorate


kernel = compiled("contract")


def _count() -> int:
    """NPFLOW_THREADS if it is set, else the processors that this process may run on."""
    given = os.environ.get("NPFLOW_THREADS", "")
    if not given:
        return len(os.sched_getaffinity(0))
    if not given.isdecimal() or int(given) < 1:
        raise ConfigurationError(
            f"NPFLOW_THREADS is {given!r}; expected a whole number of threads, at least 1"
        )
    return int(given)


THREADS = _count()
keep_freed_memory()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


# Threads do not survive a fork: the child makes its own when it needs them.
os.register_at_fork(after_in_child=_forget_pool)


@register_jitable
def block_rows(columns: int) -> int:
    """Rows in a block: few enough for the first caches, and never a matter of the threads."""
    return max(16, 4096 // max(columns, 1))


def block_count(x: NDArray[Any]) -> int:
    """The number of blocks of rows in x (B, D)."""
    rows, columns = x.shape
    return -(-rows // block_rows(columns))


def run(function: Callable[..., None], n: int, work: int, *args: Any) -> None:
    """function(0, n, *args), as function(start, stop, *args) on several threads if work is large.

    work is the number of elements. The function must release the GIL and write the same values
    however [0, n) is cut: n counts rows that are independent, or blocks of a fixed size.
    """
    global _pool
    if work < THRESHOLD or THREADS < 2 or n < 2:  # the usual case of small flows: no more calls
        function(0, n, *args)
        return
    threads = min(THREADS, n)
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS - 1, "npflow")
    cuts = [n * i // threads for i in range(threads + 1)]
    others = [_pool.submit(function, start, stop, *args) for start, stop in pairwise(cuts[1:])]
    function(0, cuts[1], *args)
    for other in others:
        other.result()


@kernel
def add_parts(parts: NDArray[Any], sign: int, total: NDArray[Any]) -> None:
    """total (D,) += sign * the sum of parts (blocks, D), which is float64 and added in order."""
    for block in range(1, len(parts)):
        for j in range(parts.shape[1]):
            parts[0, j] += parts[block, j]
    for j in range(len(total)):
        total[j] += sign * parts[0, j]
