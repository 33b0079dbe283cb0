"""The command line: processes with the stand-in device, from another folder, with a cold cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import nvrtc

FOLDER = Path(__file__).parents[1]  # as in `python tests/cuda_on_cpu`
TOOL = (sys.executable, FOLDER)


def start(*command, cwd, path=""):
    """A process that inherits nothing of a stand-in device around these tests."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "CUDA_ON_CPU_CACHE" or not name.startswith(("CUDA_ON_CPU", "PYTEST_"))
    }
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, errors = process.communicate()
    return process.returncode, out, errors


def run(*command, cwd):
    return finish(start(*TOOL, *command, cwd=cwd))


def write(folder, name, text):
    (folder / name).write_text(text)
    return name


SUM = "import cupy, sys; x = cupy.arange(5.0); print(float((x * x).sum()), sys.argv[1:])\n"


@pytest.mark.parametrize("before", [(), ("python",)])
def test_script_with_arguments(tmp_path, before):
    script = write(tmp_path, "script.py", SUM)
    found = run("--", *before, script, "--backend", "cupy", cwd=tmp_path)
    assert found == (0, "30.0 ['--backend', 'cupy']\n", "")  # nothing said: a clean shutdown


def test_as_a_module(tmp_path):
    script = write(tmp_path, "script.py", SUM)
    command = (sys.executable, "-m", "cuda_on_cpu", "--", script)
    assert finish(start(*command, cwd=tmp_path, path=FOLDER.parent)) == (0, "30.0 []\n", "")


def test_module_and_exit_code(tmp_path):
    write(tmp_path, "program.py", "import cupy, sys; sys.exit(int(cupy.full(3, 14).sum()))")
    assert run("--", "-m", "program", cwd=tmp_path)[0] == 42


def test_error_of_a_script_passes_through(tmp_path):
    status, _, errors = run("--", write(tmp_path, "x.py", "import cupy; cupy.q"), cwd=tmp_path)
    assert status == 1 and "AttributeError" in errors


def test_pytest_and_its_plugin(tmp_path):
    write(
        tmp_path,
        "test_gpu.py",
        """
import cupy, pytest
def test_sum(device_counters):
    with device_counters() as c:
        x = cupy.ones(3) + 1
    assert c["launches"] == 2 and x.sum() == 6
def test_overrun():
    x = cupy.zeros(4)
    shifted = cupy.ElementwiseKernel("int32 n", "raw float64 x", "x[i + 1] = 1", "shifted")
    shifted(cupy.int32(0), x, size=4)
""",
    )
    status, out, _ = run("--", "pytest", "-p", "no:cacheprovider", cwd=tmp_path)
    assert status == 1 and "1 failed, 1 passed" in out
    assert "on the CPU stand-in device (thread order forward, guard zones on)" in out
    assert "memory was overrun on the stand-in device" in out


def test_child_processes_and_reports(tmp_path):
    write(tmp_path, "child.py", "import cupy; assert cupy.is_available(); cupy.zeros(7)")
    write(
        tmp_path,
        "parent.py",
        """
import cupy, subprocess, sys
cupy.asarray([1, 2])
sys.exit(subprocess.run([sys.executable, "child.py"]).returncode)
""",
    )
    found = run(
        "--report", "out/report.json", "--order", "reverse", "--", "parent.py", cwd=tmp_path
    )
    assert found == (0, "", "")
    main = json.loads((tmp_path / "out" / "report.json").read_text())
    (other,) = (tmp_path / "out").glob("report-*.json")
    child = json.loads(other.read_text())
    assert main["h2d"] == 1 and main["h2d_bytes"] == 16 and main["order"] == "reverse"
    assert child["h2d"] == 0 and child["allocations"] == 1 and child["command"] == ["child.py"]


def test_existing_sitecustomize_still_runs(tmp_path):
    (tmp_path / "site").mkdir()
    write(tmp_path / "site", "sitecustomize.py", "import builtins; builtins.customized = 'yes'")
    script = "import cupy, sitecustomize as s; print(customized, cupy.is_available(), s.__file__)"
    command = (*TOOL, "--", write(tmp_path, "script.py", script))
    _, out, _ = finish(start(*command, cwd=tmp_path, path=tmp_path / "site"))
    assert out.split()[:2] == ["yes", "True"] and str(tmp_path) in out


def test_process_without_cupy_pays_nothing(tmp_path):
    script = "import sys; print('numpy' in sys.modules, 'cupy' in sys.modules)"
    found = run("--", write(tmp_path, "script.py", script), cwd=tmp_path)
    assert found == (0, "False False\n", "")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--order", "sideways"), "expected forward, reverse, random:SEED or warps"),
        (("--arch", "8.0"), "expected digits such as 80"),
        ((), "no command given"),
    ],
)
def test_wrong_choices(tmp_path, flags, message):
    status, _, errors = run(*flags, *(["--", "x.py"] if flags else []), cwd=tmp_path)
    assert status == 2 and message in errors


def test_choices_reach_the_device(tmp_path):
    write(
        tmp_path,
        "script.py",
        """
import cupy
print(cupy.cuda.Device().compute_capability, cupy.cuda.runtime.memGetInfo()[1])
x = cupy.empty(128, "f4")
print(cupy.get_default_memory_pool().used_bytes())
try:
    cupy.empty(10**6, "f4")
except cupy.cuda.memory.OutOfMemoryError as error:
    print(error)
""",
    )
    flags = ("--arch", "90", "--memory", "1000000", "--no-fill", "--no-guards")
    status, out, errors = run(*flags, "--", "script.py", cwd=tmp_path)
    assert (status, errors) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["90 1000000", "512"] and "Out of memory allocating" in lines[2]


def test_parallel_processes_share_a_cold_cache(tmp_path):
    write(tmp_path, "script.py", SUM)
    command = (*TOOL, "--cache", tmp_path / "cache", "--", "script.py")
    for process in [start(*command, cwd=tmp_path) for _ in range(2)]:
        assert finish(process) == (0, "30.0 []\n", "")
    assert not list((tmp_path / "cache").glob("tmp*"))


@pytest.mark.skipif(not nvrtc.supported_archs(), reason="NVRTC is not installed")
def test_captured_sources_compile_with_nvrtc(tmp_path):
    write(
        tmp_path,
        "script.py",
        """
import cupy
code = "template <class T> __global__ void twice(T* x) { x[threadIdx.x] *= FACTOR; }"
module = cupy.RawModule(code=code, options=("-DFACTOR=2",), name_expressions=("twice<float>",))
x = cupy.ones(4, "f4")
module.get_function("twice<float>")((1,), (4,), (x,))
print(float((x + 1).sum()))
""",
    )
    assert run("--capture", "kernels", "--", "script.py", cwd=tmp_path) == (0, "12.0\n", "")
    sources = {source.name: source for source in nvrtc.read_captured(tmp_path / "kernels")}
    assert len(sources) == 4
    (own,) = [source for source in sources.values() if not source.cupy_generated]
    assert own.name_expressions == ["twice<float>"]
    for source in sources.values():
        (row,) = source.compile("80")
        assert row.registers > 4 and row.spill_bytes == 0
