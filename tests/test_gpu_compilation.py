"""NVIDIA's compiler takes every CUDA source, for real architectures and without a GPU.

Our kernels keep everything in registers, and take as many of them as kernels/cuda/resources.json
records for each compiler and architecture. To record anew, and see in the diff what has changed:

    python tests/test_gpu_compilation.py --record

The sources that CuPy generates are those that a run of tests/cuda_on_cpu captured:

    python tests/cuda_on_cpu --capture FOLDER -- pytest -m gpu
    CUDA_ON_CPU_CAPTURE=FOLDER pytest tests/test_gpu_compilation.py
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import runpy
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cuda_on_cpu import nvrtc

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "kernels" / "cuda"
RECORD = CUDA / "resources.json"
FAMILIES = sorted(path.stem for path in CUDA.glob("*.cu"))
ARCHS = ("70", "75", "80", "90", "120")
CAPTURE = os.environ.get("CUDA_ON_CPU_CAPTURE")
BATCH = 40  # of the captured sources are compiled together

pytest.importorskip("cupy", reason="needs CuPy: pip install 'npflow[gputest]'")
missing = set(ARCHS) - set(nvrtc.supported_archs())
if missing and __name__ != "__main__":
    pytest.skip(
        f"no NVRTC for sm_{', sm_'.join(sorted(missing))}: pip install 'npflow[gputest]'",
        allow_module_level=True,
    )

# As Family compiles them; by its path, since the package of the launchers loads CuPy's libraries.
read_source = runpy.run_path(str(ROOT / "kernels" / "gpu" / "launch.py"))["read_source"]


def compiler(arch: str) -> str:
    """The version of the NVRTC for an architecture."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.load(arch).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_family(family: str) -> list[nvrtc.KernelResources]:
    """Every kernel of a family in float and double for all architectures."""
    source = read_source(f"{family}.cu")
    kernels = re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(", source)
    names = [f"{kernel}<{real}>" for kernel in kernels for real in ("float", "double")]

    def compile(arch: str) -> list[nvrtc.KernelResources]:
        return nvrtc.compile_source(source, arch, ["-std=c++17"], names)

    with ThreadPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(compile, ARCHS) for row in rows]
    assert len(rows) == len(names) * len(ARCHS) > 0
    return rows


def record_of(rows: Iterable[nvrtc.KernelResources]) -> dict[str, dict[str, Any]]:
    """kernel -> registers on each architecture, and bytes of shared memory, the same on all."""
    record: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row.kernel, ARCHS.index(row.arch))):
        numbers = {"registers": [], "shared_bytes": row.shared_bytes}
        record.setdefault(row.kernel, numbers)["registers"].append(row.registers)
        assert record[row.kernel]["shared_bytes"] == row.shared_bytes
    return record


@pytest.mark.parametrize("family", FAMILIES)
def test_our_kernels_compile_within_their_registers(family):
    rows = compile_family(family)
    assert not [row for row in rows if row.spill_bytes or row.stack_bytes]
    recorded, found = json.loads(RECORD.read_text()), record_of(rows)
    recorded_here = recorded.get(family, {})
    compilers = {f"sm_{arch}": compiler(arch) for arch in ARCHS}
    if recorded["compilers"] != compilers:
        pytest.skip(f"compiled, but the record is of {recorded['compilers']}, not {compilers}")
    changed = {
        kernel: f"{recorded_here.get(kernel)} -> {found.get(kernel)}"
        for kernel in sorted(found.keys() | recorded_here.keys())
        if recorded_here.get(kernel) != found.get(kernel)
    }
    assert not changed, "if this is meant: python tests/test_gpu_compilation.py --record"


def test_every_recorded_family_exists():
    assert json.loads(RECORD.read_text()).keys() - {"compilers"} == set(FAMILIES)


def write_record() -> None:
    """One line a kernel, so that a change shows as one."""
    parts = [f'"compilers": {json.dumps({f"sm_{arch}": compiler(arch) for arch in ARCHS})}']
    for family in FAMILIES:
        kernels = record_of(compile_family(family)).items()
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kernels)
        parts.append(f'"{family}": {{\n{lines}\n}}')
    RECORD.write_text("{\n" + ",\n".join(parts) + "\n}\n")


# --- what CuPy generates ----------------------------------------------------------------------


def captured() -> list[nvrtc.Captured]:
    """Captured sources that are CuPy's; ours are compiled above."""
    if not CAPTURE:
        pytest.skip("needs CUDA_ON_CPU_CAPTURE, a folder of captured sources")
    sources = [source for source in nvrtc.read_captured(Path(CAPTURE)) if source.cupy_generated]
    assert sources, f"nothing of CuPy's was captured in {CAPTURE}"
    return sources


def compile_batch(batch: list[nvrtc.Captured], arch: str) -> list[nvrtc.KernelResources]:
    """Sources with the same headers as one, which takes a sixth of the time.

    Each goes into a namespace of its own. If that does not compile, the sources alone must.
    """
    parts = []
    for number, source in enumerate(batch):
        include = re.compile(r"^#include .*$", re.MULTILINE)
        macros = re.findall(r"^#define (\w+)", source.source, re.MULTILINE)
        kernels = re.findall(r'extern "C" __global__ void (\w+)\(', source.source)
        parts += include.findall(source.source)
        parts += [f"#define {kernel} {kernel}_{number}" for kernel in kernels]
        parts += [f"namespace source_{number} {{", include.sub("", source.source), "}"]
        parts += [f"#undef {name}" for name in (*macros, *kernels)]
    try:
        return nvrtc.compile_source("\n".join(parts), arch, batch[0].options)
    except nvrtc.NvrtcError:
        return [row for source in batch for row in source.compile(arch)]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_sources_that_cupy_generates_compile(arch):
    together: dict[tuple[str, ...], list[nvrtc.Captured]] = {}
    for source in captured():
        together.setdefault((*source.options, *source.name_expressions), []).append(source)
    batches = [
        group[start : start + BATCH]
        for group in together.values()
        for start in range(0, len(group), BATCH)
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda batch: compile_batch(batch, arch), batches))
    for batch, rows in zip(batches, found, strict=True):
        assert len(rows) >= len(batch)  # a kernel of each
        assert not [row for row in rows if row.spill_bytes]


def test_a_source_in_a_batch_is_compiled():
    """Equal names in one batch do not clash, and a fault in any of the sources is found."""
    sources = captured()[:3]
    assert len(compile_batch([*sources, sources[0]], "80")) == len(compile_batch(sources, "80")) + 1
    kernel = 'extern "C" __global__ void'
    assert sources[1].source.count(kernel) == 1
    broken = sources[1].source.replace(kernel, f"{kernel} // ")
    faulty = nvrtc.Captured("faulty", broken, sources[1].options, [], True)
    with pytest.raises(nvrtc.NvrtcError):
        compile_batch([sources[0], faulty, sources[2]], "80")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit(__doc__)
    write_record()
