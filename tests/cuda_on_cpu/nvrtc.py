"""Compiles CUDA C++ with NVIDIA's NVRTC for real GPUs and says what each kernel needs there.

    compile_source(source, arch, options=(), name_expressions=()) -> list[KernelResources]

takes the architecture as a compute capability, "75" or "120", and the newest installed NVRTC that
knows it: CUDA 13 for 75 and later, 12.9 for 50 to 72. Both may be used in one process, and in
several threads at a time: the interpreter lock is released while NVRTC compiles. A source that does
not compile is an NvrtcError with NVRTC's log.

    PYTHONPATH=tests python -m cuda_on_cpu.nvrtc FOLDER --arch 70 75 80 90 120

prints a table of the kernels in FOLDER, written by ``python tests/cuda_on_cpu --capture FOLDER``,
and ends with 1 if one does not compile or spills registers to memory.

Needs no GPU and no driver, only ``pip install nvidia-cuda-nvrtc nvidia-cuda-nvrtc-cu12``.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


class NvrtcError(RuntimeError):
    """NVRTC is absent, or refused a source; then the message is its log."""


@dataclass(frozen=True)
class KernelResources:
    """What one kernel needs on one architecture, a compute capability such as "80"."""

    kernel: str
    arch: str
    registers: int
    spill_bytes: int  # stores and loads
    shared_bytes: int  # static
    stack_bytes: int


@functools.cache
def _installed() -> list[tuple[ctypes.CDLL, set[int]]]:
    """NVRTC of every installed wheel, newest first, and the architectures that each knows."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    paths = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    found = []
    for path in sorted(paths, key=lambda path: int(path.suffix[1:]), reverse=True):
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # looked for by bare name
            ctypes.CDLL(str(builtins))
        library = ctypes.CDLL(str(path))
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(known)
        found.append((library, set(known)))
    return found


def supported_archs() -> list[str]:
    """The architectures that the installed compilers know; empty if none is installed."""
    return [str(arch) for arch in sorted(set().union(*(known for _, known in _installed())))]


def load(arch: str) -> ctypes.CDLL:
    """The newest installed NVRTC that knows the architecture."""
    for library, known in _installed():
        if int(arch) in known:
            return library
    raise NvrtcError(
        f"no installed NVRTC knows sm_{arch}, only {' '.join(supported_archs()) or 'nothing'}: "
        "pip install nvidia-cuda-nvrtc (sm_75 and later), nvidia-cuda-nvrtc-cu12 (sm_50 to sm_72)"
    )


def compile_source(
    source: str, arch: str, options: Sequence[str] = (), name_expressions: Sequence[str] = ()
) -> list[KernelResources]:
    """Compiles for one architecture, as CuPy does (float32 denormals flushed to zero)."""
    nvrtc = load(arch)
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        for expression in name_expressions:
            nvrtc.nvrtcAddNameExpression(program, expression.encode())
        flags = [
            *options,
            f"--gpu-architecture=sm_{arch}",
            "-ftz=true",
            "--device-as-default-execution-space",
            "--ptxas-options=-v",
        ]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        text = log.value.decode(errors="replace")
        if status:
            raise NvrtcError(text.strip() or nvrtc.nvrtcGetErrorString(status).decode())
        lowered = {}
        for expression in name_expressions:
            name = ctypes.c_char_p()
            nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name))
            lowered[(name.value or b"").decode()] = expression
        return [
            KernelResources(lowered.get(name, name), arch, *numbers)
            for name, *numbers in _parse(text)
        ]
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _parse(log: str) -> list[tuple]:
    """Kernel, registers, spilled bytes, shared memory and stack from the assembler's report."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    rows = []
    for name, stack, stores, loads, registers, rest in re.findall(pattern, log, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stores) + int(loads)
        rows.append((name, int(registers), spilled, int(shared[1]) if shared else 0, int(stack)))
    return rows


# ---- captured sources ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """A source that ``--capture`` wrote, with all that compile_source needs."""

    name: str
    source: str
    options: list[str]
    name_expressions: list[str]
    cupy_generated: bool

    def compile(self, arch: str) -> list[KernelResources]:
        return compile_source(self.source, arch, self.options, self.name_expressions)


def read_captured(folder: Path) -> list[Captured]:
    """Every captured source of the folder."""
    sources = []
    for file in sorted(folder.glob("*.cu")):
        record = json.loads(file.with_suffix(".json").read_text())
        headers = _cupy_headers() if record["cupy_generated"] else []
        record["options"] += [f"-I{header}" for header in headers]
        sources.append(Captured(file.stem, file.read_text(), **record))
    return sources


@functools.cache
def _cupy_headers() -> list[Path]:
    """Where the sources that CuPy generates find CuPy's headers, and the toolkit's if any."""
    spec = importlib.util.find_spec("cupy")
    if spec is None or spec.origin is None:
        raise NvrtcError("sources generated by CuPy need its headers: pip install cupy-cuda13x")
    headers = Path(spec.origin).parent / "_core" / "include"
    cccl = headers / "cupy" / "_cccl"
    from cuda.pathfinder import find_nvidia_header_directory

    toolkit = find_nvidia_header_directory("cudart")
    own = [cccl / "cub", cccl / "thrust", cccl / "libcudacxx", headers]
    return [*own, Path(toolkit)] if toolkit else own


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cuda_on_cpu.nvrtc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="captured sources")
    parser.add_argument(
        "--arch", nargs="+", default=["80", "90"], help="compute capabilities [80 90]"
    )
    given = parser.parse_args(arguments)
    jobs = [(source, arch) for source in read_captured(given.folder) for arch in given.arch]
    errors = []

    def run(job: tuple[Captured, str]) -> list[KernelResources]:
        source, arch = job
        try:
            return source.compile(arch)
        except NvrtcError as error:
            errors.append(f"{source.name} for sm_{arch}: {error}")
            return []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [row for found in pool.map(run, jobs) for row in found]
    print("\n".join(table(rows)))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    spilling = [row for row in rows if row.spill_bytes]
    print(f"{len(rows)} kernels compiled, {len(errors)} errors, {len(spilling)} with spills")
    return 1 if errors or spilling else 0


def table(rows: Iterable[KernelResources]) -> list[str]:
    """Lines of a table, with its heading."""
    line = "{:>6} {:>9} {:>9} {:>8} {:>7}  {}".format
    return [
        line("arch", "registers", "spilled B", "shared B", "stack B", "kernel"),
        *(
            line(
                f"sm_{row.arch}",
                row.registers,
                row.spill_bytes,
                row.shared_bytes,
                row.stack_bytes,
                row.kernel,
            )
            for row in rows
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
