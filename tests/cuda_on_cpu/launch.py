"""Launches kernels on host memory, after the checks that a GPU's driver makes, and some more."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .compile import Built, build_library
from .counting import add, add_named
from .settings import parse_order, settings

# Bytes of shared memory without and with opting in.
STATIC_LIMIT, DYNAMIC_LIMIT = 48 << 10, 99 << 10
GRID_LIMIT, BLOCK_LIMIT = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
_LAUNCH = struct.Struct("=6I2Q2i")  # mirrors host_cuda::Launch


class KernelError(RuntimeError):
    """A launch that is invalid, or a kernel that breaks a rule of CUDA."""


class _ElfSymbol(ctypes.Structure):  # Elf64_Sym
    _fields_ = [
        ("name", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    ]


_launch_number = 0


@functools.cache
def _load_runtime() -> None:
    """The runtime that every module of kernels is linked to when it is loaded."""
    source = Path(__file__).parent / "host_cuda_runtime.cpp"
    path = build_library(source.read_text(), name="host_cuda_runtime.so")
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class Module:
    """A loaded shared object of kernels."""

    def __init__(self, built: Built, strict: bool):
        _load_runtime()
        # PyDLL keeps the interpreter lock during a call: the state is not for concurrent launches.
        self.library = ctypes.PyDLL(str(built.path))
        self.kernels = {
            name: Kernel(self.library, i, name, strict) for i, name in enumerate(built.kernels)
        }

    def kernel(self, name: str) -> Kernel:
        if name not in self.kernels:
            known = ", ".join(self.kernels) or "none"
            raise KernelError(
                f"CUDA_ERROR_NOT_FOUND: no kernel named {name!r}; found: {known} "
                '(is it extern "C"?)'
            )
        return self.kernels[name]

    def variable(self, name: str) -> tuple[int, int]:
        """Address and size of a __device__ or __constant__ variable."""
        try:
            address = ctypes.addressof(ctypes.c_char.in_dll(self.library, name))
        except ValueError:
            raise KernelError(
                f"CUDA_ERROR_NOT_FOUND: no __device__ or __constant__ variable named {name!r}"
            ) from None
        info, symbol = (ctypes.c_void_p * 4)(), ctypes.POINTER(_ElfSymbol)()
        ctypes.CDLL(None).dladdr1(
            ctypes.c_void_p(address), info, ctypes.byref(symbol), 1
        )  # 1: RTLD_DL_SYMENT
        return address, symbol.contents.size


class Kernel:
    """One kernel: its signature and its launcher."""

    def __init__(self, library: ctypes.PyDLL, number: int, name: str, strict: bool):
        self.name, self.strict = name, strict
        self.dynamic_limit = STATIC_LIMIT
        self._run = getattr(library, f"cuda_on_cpu_run_{number}")
        self._run.restype, self._run.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_void_p]
        signature = getattr(library, f"cuda_on_cpu_signature_{number}")
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode().split()

    def launch(
        self, grid: Sequence[int], block: Sequence[int], shared_bytes: int, parameters: int
    ) -> None:
        """Runs the kernel; `parameters` is the address of an array of pointers to the arguments."""
        global _launch_number
        self._check_configuration(grid, block, shared_bytes)
        add("launches")
        add_named("kernels", self.name)
        _launch_number += 1
        order, seed = parse_order(settings.order)
        strict = self.strict and settings.strict
        random = seed * 1_000_003 + _launch_number
        launch = _LAUNCH.pack(*grid, *block, shared_bytes, random % 2**64, order, strict)
        error = self._run(launch, parameters)
        if error:
            raise KernelError(f"{self.name}: {error.decode()}")

    def _check_configuration(
        self, grid: Sequence[int], block: Sequence[int], shared_bytes: int
    ) -> None:
        threads = block[0] * block[1] * block[2]
        for what, given, limit in (("grid", grid, GRID_LIMIT), ("block", block, BLOCK_LIMIT)):
            x, y, z = given
            if not (1 <= x <= limit[0] and 1 <= y <= limit[1] and 1 <= z <= limit[2]):
                raise self._invalid(f"{what} {tuple(given)}; the limit is {limit}")
        if threads > 1024:
            raise self._invalid(f"{threads} threads in a block; the limit is 1024")
        if shared_bytes > self.dynamic_limit:
            raise self._invalid(
                f"{shared_bytes} bytes of dynamic shared memory; the limit is {self.dynamic_limit} "
                f"(max_dynamic_shared_size_bytes raises it to {DYNAMIC_LIMIT})"
            )

    def _invalid(self, what: str) -> KernelError:
        return KernelError(f"{self.name}: CUDA_ERROR_INVALID_VALUE: {what}")

    def allow_dynamic_shared(self, size: int) -> None:
        if size > DYNAMIC_LIMIT:
            raise self._invalid(f"{size} bytes of dynamic shared memory; at most {DYNAMIC_LIMIT}")
        self.dynamic_limit = size

    def check_arguments(self, arguments: Sequence[object]) -> None:
        """CUDA takes arguments by address and cannot see that one does not fit; here it may not."""
        if len(arguments) != len(self.signature):
            raise KernelError(
                f"{self.name}: {len(arguments)} arguments for {len(self.signature)} parameters"
            )
        for i, (argument, parameter) in enumerate(zip(arguments, self.signature, strict=True)):
            problem = _misfit(argument, parameter)
            if problem:
                raise KernelError(
                    f"{self.name}: argument {i} is {problem}; "
                    f"the parameter is {_describe(parameter)}"
                )


KINDS = {
    "f": "floating-point",
    "i": "integer",
    "u": "unsigned integer",
    "b": "bool",
    "s": "struct",
    "v": "void",
}


def _describe(parameter: str) -> str:
    pointer, code = parameter.startswith("*"), parameter.lstrip("*")
    return f"{'a pointer to ' if pointer else ''}{KINDS[code[0]]} of {code[1:]} bytes"


def _misfit(argument: object, parameter: str) -> str:
    """What is wrong with passing the argument for the parameter; empty if nothing is."""
    if getattr(argument, "ndim", 0) or hasattr(getattr(argument, "data", None), "ptr"):
        return _misfit_of_array(argument.dtype, parameter)
    pointer, code = parameter.startswith("*"), parameter.lstrip("*")
    kind, size = code[0], int(code[1:])
    if (kind == "s" and not pointer) or not isinstance(argument, bool | int | float | np.generic):
        return ""  # structs and CuPy's own wrappers are passed as they are
    value = np.asarray(argument)  # as CuPy packs it: int and float become 8 bytes
    if pointer:
        is_address = value.dtype.kind in "iu" and value.dtype.itemsize == 8
        return "" if is_address else f"a {type(argument).__name__}"
    if type(argument) is int and kind in "iub":
        low, high = (-(1 << 8 * size - 1), 1 << 8 * size - 1) if kind == "i" else (0, 1 << 8 * size)
        # little-endian: if it fits, it is right
        return "" if low <= argument < high else f"the int {argument}, which does not fit"
    if value.dtype.itemsize == size and (value.dtype.kind == "f") == (kind == "f"):
        return ""
    given = f"{value.dtype} of {value.dtype.itemsize} bytes"
    return f"a {type(argument).__name__}, passed as {given}"


@functools.cache
def _misfit_of_array(dtype: np.dtype, parameter: str) -> str:
    if not parameter.startswith("*"):
        return "an array"
    code = parameter.lstrip("*")
    kind, size = code[0], int(code[1:])
    opaque = kind in "vs" or size == 1  # void*, char* or a pointer to structs: any array will do
    fits = dtype.itemsize == size and (dtype.kind == "f") == (kind == "f")
    return "" if opaque or fits else f"an array of {dtype}"
