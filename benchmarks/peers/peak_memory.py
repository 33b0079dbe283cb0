"""Peak memory of training steps of an image flow, counted alike for every system (Linux).

Counted is the resident memory of the whole process: its peak over the steps, less what was there
before the flow, its optimiser and the batch were made. So NumPy's, Numba's and torch's allocations,
their workspaces and fragments all count; libraries, compiled code and threads do not, since steps
of a small flow (one step of flow a scale, an eighth of the batch) have loaded them before.

Parameters, gradients and Adam's two moments grow with the depth under any schedule;
`without_state_mib` is the peak less these 16 bytes a float32 parameter.
"""

import ctypes
import gc
from pathlib import Path

MIB = 2**20
STATE_BYTES = 4 * 4


def peak_memory(build, depth, batch, time_ms):
    """build(depth, batch) gives the number of parameters and a function that makes one step;
    time_ms(step) makes the steps and times one of them."""
    _, step = build(1, max(batch // 8, 1))
    step()
    step()
    del step
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that stays resident would hide what follows
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    parameters, step = build(depth, batch)
    ms = time_ms(step)
    peak = resident_mib("VmHWM") - before
    return {
        "depth": depth,
        "parameters": parameters,
        "peak_mib": peak,
        "without_state_mib": peak - STATE_BYTES * parameters / MIB,
        "ms": ms,
    }


def resident_mib(field):
    """VmRSS: the resident memory now; VmHWM: its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this measurement needs Linux")
