"""Makes CuPy use the stand-in device.

All knowledge of CuPy's insides is here, in entry_points.py and in blas.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import blas, compile, device, entry_points
from .launch import KernelError
from .settings import settings
from .supported import check_platform


def before_import() -> None:
    """Replaces the device, before any module of CuPy has looked for it."""
    check_platform()
    # The CUB reductions are compiled into CuPy for a GPU; without them CuPy generates its own,
    # from source.
    os.environ["CUPY_ACCELERATORS"] = ""
    os.environ.pop("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", None)
    _redirect_toolkit_searches()
    import cupy_backends.cuda.api.driver as driver
    import cupy_backends.cuda.api.runtime as runtime

    entry_points.replace({runtime: device.RUNTIME, driver: device.DRIVER})
    folder = Path(importlib.util.find_spec("cupy_backends").origin).parent / "cuda" / "libs"
    blas.install(next(folder.glob("cublas.*.so")), runtime.runtimeGetVersion() // 1000)


def after_import(cupy: ModuleType) -> None:
    """Replaces CuPy's compiler and allocator, and what it has compiled in for a GPU only."""
    import cupy.cuda.compiler
    import cupy.cuda.function

    function = cupy.cuda.function

    class CheckedFunction(function.Function):
        """A kernel of the caller's own: a launch checks its arguments, and then their guards."""

        def __call__(self, grid, block, args, *rest, **keywords):
            kernel = device.kernel_of(self.ptr)
            if settings.check_arguments:
                try:
                    kernel.check_arguments(args)
                except KernelError as error:
                    raise TypeError(str(error)) from None
            super().__call__(grid, block, args, *rest, **keywords)
            guards = (
                getattr(getattr(getattr(a, "data", None), "mem", None), "_owner", None)
                for a in args
            )
            for guard in guards:
                if isinstance(guard, device.Guard) and (message := device.report_overrun(guard)):
                    raise KernelError(f"{kernel.name}: {message}")

    class CheckedModule(function.Module):
        def get_function(self, name):
            return CheckedFunction(self, name)

    def compile_module(source, options=(), *, name_expressions=None, to_ltoir=False, **_ignored):
        if to_ltoir:
            raise NotImplementedError("the stand-in device cannot link intermediate code")
        capture(source, options, name_expressions or ())
        try:
            built = compile.build(source, options, name_expressions or ())
        except compile.CompileError as error:
            raise cupy.cuda.compiler.CompileException(
                str(error), source, "kernel.cu", tuple(options), "g++"
            ) from None
        own = not compile.is_cupy_generated(source)
        image = str(built.path).encode()
        device.pending[image] = (built, own)
        module = CheckedModule() if own else function.Module()
        module.load(image)
        module._set_mapping({name: name for name in name_expressions or ()})
        return module

    cupy.cuda.compiler._compile_module_with_cache = compile_module

    pool = cupy.get_default_memory_pool()

    def allocate(size):
        if not size:
            return pool.malloc(0)
        width = device.guard_width()
        block = pool.malloc(size + 2 * width)
        guard = device.Guard(block.ptr, size, block)
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(guard.address, size, guard, 0), 0)

    cupy.cuda.set_allocator(allocate)

    # What is compiled into CuPy for a GPU would do nothing here, or fail without saying why.
    for name in ("sort", "lexsort", "argsort"):
        setattr(cupy.cuda.thrust, name, _not_provided(f"{name} (Thrust)"))
    for name in ("default_rng", "XORWOW", "MRG32k3a", "Philox4x3210"):
        setattr(cupy.random, name, _not_provided(f"cupy.random.{name} (cuRAND)"))


def _not_provided(what: str):
    def fail(*_args, **_keywords):
        raise NotImplementedError(f"{what} is not provided by the CPU stand-in device")

    return fail


def _redirect_toolkit_searches() -> None:
    """CuPy looks for CUDA's libraries and headers through cuda.pathfinder."""
    from cuda import pathfinder

    find_headers, load_library = (
        pathfinder.find_nvidia_header_directory,
        pathfinder.load_nvidia_dynamic_lib,
    )
    absent = {
        "curand": "cuRAND (cupy.random)",
        "cusolver": "cuSOLVER (most of cupy.linalg)",
        "cusparse": "cuSPARSE",
        "cufft": "cuFFT",
        "cutensor": "cuTENSOR",
        "nccl": "NCCL",
    }

    def find(name):
        return str(compile.INCLUDE) if name == "cudart" else find_headers(name)

    def load(name):
        if name in absent:
            raise pathfinder.DynamicLibNotFoundError(
                f"{absent[name]} is not provided by the CPU stand-in device"
            )
        return None if name == "cublas" else load_library(name)

    pathfinder.find_nvidia_header_directory, pathfinder.load_nvidia_dynamic_lib = find, load


def capture(source: str, options: Sequence[str], name_expressions: Sequence[str]) -> None:
    """Writes a source and its options where ``python -m cuda_on_cpu.nvrtc`` can take them."""
    if not settings.capture:
        return
    folder = Path(settings.capture)
    folder.mkdir(parents=True, exist_ok=True)
    from cupy._core.core import _get_header_dir_path

    own = [
        _get_header_dir_path(),
        str(compile.INCLUDE),
    ]  # these are found again where the file is compiled
    options = [
        option for option in options if not option.startswith(tuple(f"-I{path}" for path in own))
    ]
    names = [*compile.find_kernels(source), *name_expressions]
    record = {
        "options": options,
        "name_expressions": list(name_expressions),
        "cupy_generated": compile.is_cupy_generated(source),
    }
    digest = hashlib.sha256(repr((source, record)).encode()).hexdigest()[:12]
    stem = re.sub(r"\W+", "_", names[0] if names else "module")[:80] + "-" + digest
    for suffix, text in ((".cu", source), (".json", json.dumps(record, indent=1))):
        temporary = folder / f".{stem}{suffix}.{os.getpid()}"
        temporary.write_text(text)
        os.replace(temporary, folder / (stem + suffix))
