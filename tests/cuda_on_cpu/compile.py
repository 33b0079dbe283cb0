"""Compiles CUDA C++ source text with g++ into shared objects, kept in an on-disk cache."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .settings import settings

INCLUDE = Path(__file__).parent / "include"
# No contraction and no fast-math: a result must not depend on what the optimiser happens to do.
# Modules may define the same names differently: no-gnu-unique and -Bsymbolic keep each to itself.
FLAGS = [
    *("-march=native", "-fno-fast-math", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-fno-gnu-unique", "-fno-semantic-interposition", "-fpermissive", "-fmax-errors=3"),
    *("-fPIC", "-w", "-pipe"),
]
# The C++ library is not linked: to find it takes longer than to assemble a kernel.
LINK = ["-shared", "-Wl,-Bsymbolic", "-nodefaultlibs", "-lm", "-lc", "-lgcc"]
HEADER_SUFFIXES = {".h", ".hh", ".hpp", ".cuh", ".cu", ".inc", ".inl"}


class CompileError(Exception):
    """g++ refused the source; the message is g++'s own."""


@dataclass(frozen=True)
class Built:
    """A compiled source: its shared object, and the kernels it launches by number."""

    path: Path
    kernels: list[str]


def is_cupy_generated(source: str) -> bool:
    """CuPy puts its own headers in front of the kernels that it generates, and of no others."""
    return source.startswith("#include <cupy/")


def build(source: str, options: Sequence[str] = (), name_expressions: Sequence[str] = ()) -> Built:
    """Compiles the source, or finds it in the cache."""
    kernels = [*find_kernels(source), *name_expressions]
    includes = _include_folders(options)
    # CuPy's kernels are short, and their loops are worth vectorising; whole-program leaves out what
    # its headers define and most kernels do not use. Our own kernels are long, and tests run each
    # but briefly: compiling counts for more than running.
    generated = is_cupy_generated(source)
    standard = [option for option in options if option.lstrip("-").startswith("std=")][-1:]
    flags = [
        *FLAGS,
        *(standard or ["-std=c++17"]),
        *(["-O3", "-fwhole-program"] if generated else ["-O1"]),
        f"-D__CUDA_ARCH__={settings.arch}0",
        "-D__CUDACC_VER_MAJOR__=13",
        "-D__CUDACC_VER_MINOR__=0",
    ]
    defines = [option for option in options if option.startswith(("-D", "-U"))]
    prelude = _prelude(source, flags, includes)
    text = f'#line 1 "kernel.cu"\n{_declare_dynamic_shared(source)}\n{_launchers(source, kernels)}'
    key = _digest(text, *flags, *LINK, *defines, prelude.parent.name, *_user_headers(includes))
    arguments = [*flags, *defines, *_folders(includes), "-include", str(prelude)]
    return Built(_shared_object(f"kernels/{key[:2]}/{key}.so", text, arguments, LINK), kernels)


def build_library(text: str, *link: str, name: str) -> Path:
    """Compiles plain C++ (the tool's own, no kernels) into a cached shared object."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-w", *_folders([INCLUDE])]
    key = _digest(text, *flags, *link, *_own_headers(), _compiler())
    return _shared_object(f"libraries/{key}/{name}", text, flags, ["-shared", *link])


# ---- the C++ text --------------------------------------------------------------------------------


def find_kernels(source: str) -> list[str]:
    """The extern "C" kernels: the only ones that CUDA can look up without a name expression."""
    bounds = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
    kernel = rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\("
    names = re.findall(r'extern\s+"C"\s+' + kernel, source)
    for block in re.finditer(r'extern\s+"C"\s*\{', source):
        depth, end = 1, block.end()
        while depth and end < len(source):
            depth += {"{": 1, "}": -1}.get(source[end], 0)
            end += 1
        names += re.findall(kernel, source[block.end() : end])
    return list(dict.fromkeys(names))


def _declare_dynamic_shared(source: str) -> str:
    """``extern __shared__ T name[];`` becomes a pointer to the block's dynamic memory."""
    align = r"(?:(?:__align__|alignas)\s*\(\d+\)\s*)?"
    pattern = rf"extern\s+{align}__shared__\s+{align}([\w\s:<>]+?)\s+(\w+)\s*\[\s*\]\s*;"
    return re.sub(pattern, r"\1* \2 = (\1*)host_cuda::dynamic_shared();", source)


def _launchers(source: str, kernels: list[str]) -> str:
    body = source.partition("__global__")[2]
    uses_threads = re.search(r"threadIdx|blockIdx|blockDim|gridDim|__shared__|__sync", body)
    strided = is_cupy_generated(source) and "CUPY_FOR(" in body and not uses_threads
    return "\n".join(
        f"HOST_CUDA_EXPORT const char* cuda_on_cpu_run_{i}(const host_cuda::Launch& l, void** p)"
        f" {{ return host_cuda::Kernel<{name}>::run<{str(strided).lower()}>(l, p); }}\n"
        f"HOST_CUDA_EXPORT const char* cuda_on_cpu_signature_{i}()"
        f" {{ return host_cuda::Kernel<{name}>::signature(); }}"
        for i, name in enumerate(kernels)
    )


def _include_folders(options: Sequence[str]) -> list[Path]:
    """Ours first (it stands in for CUDA's headers), then CuPy's, then the caller's.

    CuPy also passes the toolkit's own headers and CCCL: those are for NVIDIA's compiler only.
    """
    given = [Path(option[2:]) for option in options if option.startswith("-I")]
    return [
        INCLUDE,
        *(
            folder
            for folder in given
            if "_cccl" not in folder.parts and not (folder / "cuda_runtime.h").exists()
        ),
    ]


def _folders(includes: list[Path]) -> list[str]:
    return [f"-I{folder}" for folder in includes]


def _user_headers(includes: list[Path]) -> list[str]:
    """The text of every header that the source may include: it belongs to the cache key."""
    texts = []
    for folder in includes[1:]:
        if folder.name == "include" and folder.parent.name == "_core":
            continue  # CuPy's own, part of the prelude's key
        files = sorted(path for path in folder.rglob("*") if path.suffix in HEADER_SUFFIXES)
        texts += [path.read_text(errors="replace") for path in files]
    return texts


def _prelude(source: str, flags: list[str], includes: list[Path]) -> Path:
    """A header compiled once and included first: ours and, for CuPy's kernels, CuPy's."""
    text = '#include "host_cuda.hpp"\n'
    version = ""
    if generated := re.match(r"(?:#include <cupy/.*>\n)+", source):
        from cupy import __version__ as version

        text += generated[0]
    key = _digest(text, version, *flags, *_own_headers(), _compiler(), _processor())

    def compile_to(target: Path) -> None:
        header = target.with_suffix("")
        header.write_text(text)
        _run([*flags, *_folders(includes), "-x", "c++-header", str(header), "-o", str(target)])

    return _cached(f"preludes/{key}/prelude.hpp.gch", compile_to).with_suffix("")


# ---- the compiler and the cache ------------------------------------------------------------------


@functools.cache
def _own_headers() -> list[str]:
    return [path.read_text() for path in sorted(INCLUDE.rglob("*")) if path.is_file()]


@functools.cache
def _compiler() -> str:
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return version.stdout.splitlines()[0]


@functools.cache
def _processor() -> str:
    """-march=native code must not be found by another processor that shares the folder."""
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith("flags")), platform.machine())


def _run(arguments: list[str]) -> None:
    result = subprocess.run(["g++", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise CompileError(result.stderr)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _shared_object(name: str, text: str, flags: list[str], link: list[str]) -> Path:
    def compile_to(target: Path) -> None:
        source = target.with_suffix(".cpp")
        source.write_text(text)
        _run([*flags, "-x", "c++", str(source), "-x", "none", "-o", str(target), *link])

    return _cached(name, compile_to)


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file of that name in the cache.

    It is made in a folder of its own and moved in one step, so that processes that make the same
    file at the same time do not disturb each other.
    """
    target = settings.cache_folder / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.cache_folder) as folder:
            made = Path(folder) / target.name
            make(made)
            files = sorted(made.parent.iterdir(), key=lambda file: file == made)
            for file in files:  # the file itself comes last
                os.replace(file, target.parent / file.name)
    return target
