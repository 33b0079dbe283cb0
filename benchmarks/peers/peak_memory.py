"""Peak memory of training steps of an image flow, counted alike for every system (Linux).

Counted is the resident memory of the whole process, so NumPy's, Numba's and torch's allocations,
their workspaces and fragments all count. Of its peak over the steps two differences are taken:

    peak_mib : to what was there before the flow, its optimiser and the batch were made
    step_mib : to what stays between two steps. Parameters, gradients and Adam's moments, which grow
               with the depth under any schedule, are part of peak_mib alone

Libraries, compiled code and threads are part of neither: steps of a small flow (one step of flow a
scale, an eighth of the batch) have loaded them before.
"""

import ctypes
import gc
from pathlib import Path


def peak_memory(build, depth, batch, time_ms):
    """build(depth, batch) gives the number of parameters and a function that makes one step;
    time_ms(step) makes the steps and times one of them."""
    _, step = build(1, max(batch // 8, 1))
    step()
    step()
    del step
    before = settled_mib()
    parameters, step = build(depth, batch)
    step()
    between = settled_mib()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    ms = time_ms(step)
    peak = resident_mib("VmHWM")
    return {
        "depth": depth,
        "parameters": parameters,
        "peak_mib": peak - before,
        "step_mib": peak - between,
        "ms": ms,
    }


def settled_mib():
    """The resident memory without what is free: that would hide what is allocated next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mib("VmRSS")


def resident_mib(field):
    """VmRSS: the resident memory now; VmHWM: its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")
