"""Running one kernel on several threads, in parts whose results do not depend on their number."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from npflow.errors import ConfigurationError

# Elements below which waking another thread costs more than it saves.
THRESHOLD = 1 << 16


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
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


# Threads do not survive a fork: the child makes its own when it needs them.
os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., None], n: int, work: int, *args: Any) -> None:
    """kernel(0, n, *args), as kernel(start, stop, *args) on several threads if work is large.

    work is the number of elements. The kernel must release the GIL and must write the same values
    however [0, n) is cut: rows that are independent, or blocks of a size that n alone decides.
    """
    global _pool
    threads = min(THREADS, n)
    if work < THRESHOLD or threads < 2:
        kernel(0, n, *args)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS - 1, "npflow")
    cuts = [n * i // threads for i in range(threads + 1)]
    others = [
        _pool.submit(kernel, start, stop, *args)
        for start, stop in zip(cuts[1:-1], cuts[2:], strict=True)
    ]
    kernel(0, cuts[1], *args)
    for other in others:
        other.result()
