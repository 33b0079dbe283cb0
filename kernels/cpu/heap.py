"""Freed memory stays with the process, for the arrays of the next step.

After a gradient glibc would give the top of the heap back to the system, which then has to provide
and clear every page of it again: 25,000 pages in a training step of a small Glow. Up to 1 GiB is
kept instead, and arrays of up to 32 MiB, glibc's limit, come from the heap. Other C libraries have
no such settings. The user's own (MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) are left alone.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> None:
    """Called once, when the CPU's kernels are loaded."""
    given = "MALLOC_TRIM_THRESHOLD_" in os.environ or "GLIBC_TUNABLES" in os.environ
    if given or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_MMAP_THRESHOLD, 32 << 20)
