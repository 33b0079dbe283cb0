"""The stand-in device: memory, copies, streams, events, in terms of CUDA's runtime and driver.

Everything happens at once: when a call returns, its work is done. Function names and parameters are
those of CuPy's wrappers (``cupy.cuda.runtime.malloc`` is ``cudaMalloc``).
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import itertools
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar

from . import counting
from .compile import Built
from .launch import (
    BLOCK_LIMIT,
    DYNAMIC_LIMIT,
    GRID_LIMIT,
    STATIC_LIMIT,
    Kernel,
    KernelError,
    Module,
)
from .settings import settings

NAME = "CPU stand-in"
GUARD = 256  # bytes on either side of an allocation; keeps the alignment that cudaMalloc promises
_patterns = itertools.count()  # of guard zones: a copy from one into another shows


def _runtime_error(status: int) -> Exception:
    from cupy_backends.cuda.api.runtime import CUDARuntimeError

    return CUDARuntimeError(status)


INVALID_VALUE, OUT_OF_MEMORY, INVALID_HANDLE = 1, 2, 400

# ---- guard zones ---------------------------------------------------------------------------------


def guard_width() -> int:
    return GUARD if settings.guards else 0


def _guard_pattern(number: int) -> bytes:
    """NaNs as float64 and as float32; as an index, far out of range.

    Signalling ones, as float32 every other: arithmetic turns them into quiet ones, so that a kernel
    which goes one too far in what it reads and in what it writes leaves a trace.
    """
    words = (0x7FA50000 | number & 0xFFFF, 0x7FF50000 | number & 0xFFFF)
    return struct.pack("<II", *words) * (GUARD // 8)


class Guard:
    """Guard zones around `size` bytes of a block that has room for them; checked when dropped."""

    alive: ClassVar[weakref.WeakSet[Guard]] = weakref.WeakSet()

    def __init__(self, block_address: int, size: int, block: object):
        self.width, self.size, self.block = guard_width(), size, block
        self.address = block_address + self.width
        self.pattern = _guard_pattern(next(_patterns))[: self.width]
        for start in (block_address, self.address + size):
            ctypes.memmove(start, self.pattern, self.width)
        if settings.fill:
            ctypes.memset(self.address, 0xFF, size)
        counting.add("allocations")
        counting.add_live(size)
        Guard.alive.add(self)

    def broken(self) -> str:
        """Says where something was written outside, once; empty if nothing was."""
        for start, side in (
            (self.address - self.width, "before the start"),
            (self.address + self.size, "after the end"),
        ):
            found = ctypes.string_at(start, self.width)
            if found == self.pattern:
                continue
            ctypes.memmove(start, self.pattern, self.width)
            distances = [
                self.width - i if "start" in side else i + 1
                for i in range(self.width)
                if found[i] != self.pattern[i]
            ]
            reach = f"{min(distances)} to {max(distances)}"
            return f"write {reach} bytes {side} of an allocation of {self.size} bytes"
        return ""

    def __del__(self):
        counting.add_live(-self.size)
        report_overrun(self)


def report_overrun(guard: Guard) -> str:
    message = guard.broken()
    if message:
        counting.add_overrun(message)
        print(f"cuda_on_cpu: {message}", file=sys.stderr)
    return message


def check_memory() -> list[str]:
    """Checks the guard zones of all that is allocated now; what was written outside."""
    return [message for guard in list(Guard.alive) if (message := report_overrun(guard))]


# ---- device memory -------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_libc.aligned_alloc.restype, _libc.aligned_alloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t] * 2
_libc.free.argtypes = [ctypes.c_void_p]
_sizes: dict[int, int] = {}
_addresses: list[int] = []  # sorted
_host_sizes: dict[int, int] = {}


def malloc(size):
    if sum(_sizes.values()) + size > settings.memory:
        raise _runtime_error(OUT_OF_MEMORY)
    address = _libc.aligned_alloc(512, (size + 511) // 512 * 512 or 512)
    if not address:
        raise _runtime_error(OUT_OF_MEMORY)
    if settings.fill:
        ctypes.memset(address, 0xFF, size)
    _sizes[address] = size
    bisect.insort(_addresses, address)
    counting.add("device_mallocs")
    return address


def free(address):
    if not address:
        return
    if address not in _sizes:
        raise _runtime_error(INVALID_VALUE)
    del _sizes[address]
    _addresses.remove(address)
    _libc.free(address)


def hostAlloc(size, flags):
    address = _libc.aligned_alloc(512, (size + 511) // 512 * 512 or 512)
    _host_sizes[address] = size
    return address


def freeHost(address):
    _host_sizes.pop(address, None)
    _libc.free(address)


def _is_device(address: int, size: int = 0) -> bool:
    """Whether the address lies in device memory; an access that leaves its block is an error."""
    i = bisect.bisect_right(_addresses, address) - 1
    if i < 0 or address >= _addresses[i] + max(_sizes[_addresses[i]], 1):
        return False
    if address + size > _addresses[i] + _sizes[_addresses[i]]:
        raise _runtime_error(INVALID_VALUE)
    return True


def pointerGetMemoryType(address):
    on_host = any(start <= address < start + size for start, size in _host_sizes.items())
    return 2 if _is_device(address) else 1 if on_host else 0


def pointerGetAttributes(address):
    from cupy_backends.cuda.api.runtime import PointerAttributes

    kind = pointerGetMemoryType(address)
    return PointerAttributes(0 if kind else -2, address if kind == 2 else 0, address, kind)


# ---- copies --------------------------------------------------------------------------------------

_COPY_NAMES = {(False, True): "h2d", (True, False): "d2h", (True, True): "d2d"}
_COPY_KINDS = {0: (False, False), 1: (False, True), 2: (True, False), 3: (True, True)}


def memcpy2D(target, target_pitch, source, source_pitch, width, height, kind):
    direction = (
        _is_device(source, source_pitch * (height - 1) + width),
        _is_device(target, target_pitch * (height - 1) + width),
    )
    if kind != 4 and direction != _COPY_KINDS.get(kind):  # 4: cudaMemcpyDefault
        raise _runtime_error(INVALID_VALUE)
    if direction in _COPY_NAMES:
        counting.add(_COPY_NAMES[direction])
        counting.add(_COPY_NAMES[direction] + "_bytes", width * height)
    for row in range(height):
        ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)


def memcpy(target, source, size, kind):
    if size:
        memcpy2D(target, size, source, size, size, 1, kind)


def memset(target, value, size):
    if not _is_device(target, size):
        raise _runtime_error(INVALID_VALUE)
    ctypes.memset(target, value, size)


# ---- streams and events --------------------------------------------------------------------------

_handles = itertools.count(0x1000, 0x10)
_event_times: dict[int, float] = {}


def eventElapsedTime(start, end):
    times = _event_times.get(start), _event_times.get(end)
    if None in times:
        raise _runtime_error(INVALID_HANDLE)
    return (times[1] - times[0]) * 1e3


# ---- the device ----------------------------------------------------------------------------------


def setDevice(device):
    if device != 0:
        raise _runtime_error(101)  # cudaErrorInvalidDevice


def driverGetVersion():
    from cupy_backends.cuda.api.runtime import runtimeGetVersion

    return runtimeGetVersion()


def _compute_capability() -> tuple[int, int]:
    return int(settings.arch[:-1]), int(settings.arch[-1])


def deviceGetAttribute(attribute, device):
    major, minor = _compute_capability()
    known = {  # cudaDevAttr...
        1: 1024,  # threads per block
        **dict(zip((2, 3, 4), BLOCK_LIMIT, strict=True)),
        **dict(zip((5, 6, 7), GRID_LIMIT, strict=True)),
        8: STATIC_LIMIT,
        10: 32,  # threads of a warp
        13: 1_000_000,  # clock, kHz
        16: 8,  # multiprocessors
        39: 2048,  # threads per multiprocessor
        75: major,
        76: minor,
        81: 100 << 10,  # shared memory per multiprocessor
        97: DYNAMIC_LIMIT,
    }
    return known.get(attribute, 0)


def getDeviceProperties(device):
    setDevice(device)
    major, minor = _compute_capability()
    return dict(
        name=NAME.encode(),
        totalGlobalMem=settings.memory,
        major=major,
        minor=minor,
        multiProcessorCount=8,
        warpSize=32,
        maxThreadsPerBlock=1024,
        maxThreadsDim=BLOCK_LIMIT,
        maxGridSize=GRID_LIMIT,
        maxThreadsPerMultiProcessor=2048,
        sharedMemPerBlock=STATIC_LIMIT,
        sharedMemPerBlockOptin=DYNAMIC_LIMIT,
        sharedMemPerMultiprocessor=100 << 10,
        regsPerBlock=65536,
        l2CacheSize=4 << 20,
        clockRate=1_000_000,
        pciBusID=0,
        pciDeviceID=0,
        pciDomainID=0,
        integrated=0,
        unifiedAddressing=1,
    )


# ---- modules and kernels -------------------------------------------------------------------------

modules: dict[int, Module] = {}
_kernels: dict[int, Kernel] = {}
pending: dict[
    bytes, tuple[Built, bool]
] = {}  # what moduleLoadData will be asked to load, under an invented image


@contextlib.contextmanager
def _as_driver_error() -> Iterator[None]:
    """A KernelError becomes a CUDADriverError as well, which is what CuPy raises on a GPU."""
    try:
        yield
    except KernelError as error:
        from cupy_backends.cuda.api.driver import CUDADriverError

        class StandInDriverError(KernelError, CUDADriverError):
            def __init__(self, message):  # the original's asks the driver for the text
                RuntimeError.__init__(self, message)

        raise StandInDriverError(str(error)) from None


def moduleLoadData(image):
    if image not in pending:
        raise NotImplementedError(
            "the stand-in device runs kernels from CUDA C++ source only, not compiled images"
        )
    handle = next(_handles)
    modules[handle] = Module(*pending.pop(image))
    return handle


def moduleGetFunction(module, name):
    handle = next(_handles)
    with _as_driver_error():
        _kernels[handle] = modules[module].kernel(name)
    return handle


def moduleGetGlobal(module, name):
    with _as_driver_error():
        address, size = modules[module].variable(name)
    if address not in _sizes:  # from now on copies to and from it are device copies
        _sizes[address] = size
        bisect.insort(_addresses, address)
    return address


def kernel_of(handle: int) -> Kernel:
    return _kernels[handle]


def funcGetAttribute(attribute, function):
    # CU_FUNC_ATTRIBUTE_...: threads per block, compute capabilities, dynamic shared memory.
    # Registers and local memory are NVIDIA's compiler's to say: nvrtc.py.
    return {
        0: 1024,
        5: int(settings.arch),
        6: int(settings.arch),
        8: _kernels[function].dynamic_limit,
    }.get(attribute, 0)


def funcSetAttribute(function, attribute, value):
    if attribute == 8:
        with _as_driver_error():
            _kernels[function].allow_dynamic_shared(value)


def launchKernel(
    function,
    grid_x,
    grid_y,
    grid_z,
    block_x,
    block_y,
    block_z,
    shared_bytes,
    stream,
    parameters,
    extra,
):
    with _as_driver_error():
        _kernels[function].launch(
            (grid_x, grid_y, grid_z), (block_x, block_y, block_z), shared_bytes, parameters
        )


# ---- the tables that entry_points.py puts in place -----------------------------------------------


def _nothing(*_arguments):
    pass


def _zero(*_arguments):
    return 0


def _new_handle(*_arguments):
    return next(_handles)


def _synchronize(*_arguments):
    counting.add("syncs")


def _named(*functions: Callable) -> dict[str, Callable]:
    return {function.__name__: function for function in functions}


RUNTIME = _named(
    malloc,
    free,
    hostAlloc,
    freeHost,
    pointerGetMemoryType,
    pointerGetAttributes,
    memcpy2D,
    memcpy,
    memset,
    eventElapsedTime,
    setDevice,
    driverGetVersion,
    deviceGetAttribute,
    getDeviceProperties,
) | {
    "mallocAsync": lambda size, stream: malloc(size),
    "freeAsync": lambda address, stream: free(address),
    "memGetInfo": lambda: (settings.memory - sum(_sizes.values()), settings.memory),
    "memcpyAsync": lambda target, source, size, kind, stream: memcpy(target, source, size, kind),
    "memcpy2DAsync": lambda *arguments_and_stream: memcpy2D(*arguments_and_stream[:-1]),
    "memsetAsync": lambda target, value, size, stream: memset(target, value, size),
    "streamCreate": _new_handle,
    "streamCreateWithFlags": _new_handle,
    "streamCreateWithPriority": _new_handle,
    "streamDestroy": _nothing,
    "streamWaitEvent": _nothing,
    "streamSynchronize": _synchronize,
    "streamQuery": _zero,
    "streamGetPriority": _zero,
    "streamGetFlags": _zero,
    "streamIsCapturing": _zero,
    "streamAddCallback": lambda stream, callback, argument: callback(stream, 0, argument),
    "launchHostFunc": lambda stream, callback, argument: callback(argument),
    "eventCreate": _new_handle,
    "eventCreateWithFlags": _new_handle,
    "eventRecord": lambda event, stream: _event_times.update({event: time.perf_counter()}),
    "eventDestroy": lambda event: _event_times.pop(event, None) and None,
    "eventQuery": _zero,
    "eventSynchronize": _synchronize,
    "_ensure_context": _nothing,
    "getDevice": _zero,
    "getDeviceCount": lambda: 1,
    "deviceSynchronize": _synchronize,
    "deviceGetPCIBusId": lambda device: "0000:00:00.0",
    "deviceGetByPCIBusId": _zero,
}
DRIVER = _named(
    moduleLoadData,
    moduleGetFunction,
    moduleGetGlobal,
    funcGetAttribute,
    funcSetAttribute,
    launchKernel,
) | {
    "ctxGetCurrent": lambda: 1,
    "ctxGetDevice": _zero,
    "moduleUnload": lambda module: modules.pop(module, None) and None,
    "occupancyMaxActiveBlocksPerMultiprocessor": (
        lambda function, block_size, shared_bytes: 2048 // max(block_size, 1)
    ),
    "occupancyMaxPotentialBlockSize": lambda function, shared_bytes, limit: (16, limit or 1024),
}
