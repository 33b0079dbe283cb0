"""NVRTC as a function and as a command."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_on_cpu import nvrtc

SOURCE = (Path(__file__).parent / "kernels.cu").read_text()
SPILL = """
extern "C" __global__ void __launch_bounds__(1024) spill(double* x) {
  double v[40];
  for (int i = 0; i < 40; i++) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 40; i++) x[(39 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7) % 40];
}"""

pytestmark = pytest.mark.skipif(not nvrtc.supported_archs(), reason="NVRTC is not installed")


def test_resources():
    rows = nvrtc.compile_source(SOURCE, "80", ("-DREAL=double",))
    assert len(rows) == 8
    assert {row.kernel: row.shared_bytes for row in rows}["row_sum_shuffle"] == 32 * 8
    assert all(row.arch == "80" and 4 < row.registers < 128 for row in rows)
    assert all(row.spill_bytes == row.stack_bytes == 0 for row in rows)


def test_each_architecture_has_its_compiler_also_in_threads():
    archs = [arch for arch in ("70", "75", "120") if arch in nvrtc.supported_archs()]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda arch: nvrtc.compile_source(SOURCE, arch), archs))
    assert [rows[0].arch for rows in found] == archs
    assert found == [nvrtc.compile_source(SOURCE, arch) for arch in archs]
    with pytest.raises(nvrtc.NvrtcError, match=r"no installed NVRTC knows sm_20, only .* 75 80 "):
        nvrtc.compile_source(SOURCE, "20")


@pytest.mark.parametrize(
    "source, status, said",
    [
        (SOURCE, 0, "16 kernels compiled, 0 errors, 0 with spills"),
        (SPILL, 1, "2 kernels compiled, 0 errors, 2 with spills"),
        (SOURCE.replace("int i =", "int j ="), 1, 'identifier "i" is undefined'),
    ],
    ids=["right", "spill", "wrong"],
)
def test_command(tmp_path, capsys, source, status, said):
    record = {"options": [], "name_expressions": [], "cupy_generated": False}
    (tmp_path / "source.cu").write_text(source)
    (tmp_path / "source.json").write_text(json.dumps(record))
    assert nvrtc.main([str(tmp_path), "--arch", "75", "90"]) == status
    assert said in "".join(capsys.readouterr())
