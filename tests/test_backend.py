"""Backends by name, and what importing npflow brings along."""

import dataclasses
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import npflow
from npflow.backend import NAMES, get_backend
from npflow.bijections.chain import as_memory
from npflow.errors import BackendError, DtypeError, OutOfMemoryError
from npflow.flow import explain_out_of_memory

KERNELS = {"reference": "npflow.kernels.reference", "numpy": "npflow.kernels.cpu"}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.dtype("float64"), None])
def test_backends_by_name(name, dtype):
    backend = get_backend(name, dtype)
    assert backend.name == name
    assert backend.xp is np
    assert backend.kernels.__name__ == KERNELS[name]
    assert backend.dtype == np.dtype("float32" if dtype is None else dtype)
    assert not backend.on_device
    assert npflow.get_backend(name, dtype) == backend


def test_a_backend_passes_through():
    backend = get_backend("reference", "float64")
    assert get_backend(backend) is backend
    narrow = get_backend(backend, "float32")
    assert (narrow.name, narrow.dtype) == ("reference", np.float32)
    flow = npflow.models.realnvp(2, backend=backend)
    assert flow.backend is backend
    assert flow.params.values.dtype == np.float64


def test_a_backend_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_backend("numpy").name = "other"


def test_arrays_to_and_from_a_backend():
    backend = get_backend("numpy", "float32")
    array = backend.array([[1, 2], [3, 4]])
    assert (array.dtype, array.shape) == (np.float32, (2, 2))
    assert backend.array(array) is array  # no copy where none is needed
    assert backend.to_numpy(array) is array


@pytest.mark.parametrize("name", ["", "NumPy", "torch", None, 3])
def test_unknown_names(name):
    with pytest.raises(BackendError, match=r"unknown backend .* choose one of auto, reference"):
        get_backend(name)


@pytest.mark.parametrize(
    "dtype", ["float16", "int32", "complex128", bool, "single precision", ">f4"]
)
def test_other_dtypes(dtype):
    with pytest.raises(DtypeError, match="expected float32 or float64"):
        get_backend("numpy", dtype)


def test_auto_is_numpy_without_a_gpu(monkeypatch):
    monkeypatch.setattr(npflow.backend, "_cuda_problem", lambda: "no GPU")
    assert get_backend("auto").name == "numpy"
    with pytest.raises(BackendError, match="no GPU"):
        get_backend("cupy")


# Machines on which the cupy backend cannot run


def pretend_installed(monkeypatch, cupy):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def assert_refused(message):
    with pytest.raises(BackendError, match=message) as caught:
        get_backend("cupy")
    assert "use backend 'numpy'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert get_backend("auto").name == "numpy"


def test_cupy_that_is_not_installed_is_an_error_with_the_install_line(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cupy" else find_spec(name)
    )
    assert_refused(
        r"not installed: pip install 'npflow\[cuda13\]' if nvidia-smi shows CUDA Version 13 or "
        r"later, 'npflow\[cuda12\]' if it shows 12"
    )


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (ValueError("numpy.dtype size changed"), None),
        (ImportError("=====\nFailed to import CuPy.\n"), ImportError("libcudart.so.12: no file")),
    ],
)
def test_cupy_that_cannot_be_imported_is_an_error_with_the_cause(raised, cause, monkeypatch):
    import_module = importlib.import_module

    def broken(name):
        if name == "cupy":
            raise raised from cause
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    shown = cause or raised
    assert_refused(rf"importing it failed with {type(shown).__name__}: {shown}\. Uninstall every")


class CUDARuntimeError(RuntimeError):
    pass


INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"
MACHINES = {  # what asking for the devices gives, the CUDA versions of the driver and of CuPy
    "no driver": (INSUFFICIENT, 0, 13020, r"no NVIDIA driver; install one, or give the cont"),
    "driver of CUDA 12": (
        INSUFFICIENT, 12040, 13000,
        r"supports CUDA 12\.4, and this CuPy is built for CUDA 13; update the driver, or install "
        r"CuPy for it: pip install 'npflow\[cuda12\]'",
    ),
    "driver of CUDA 11": (
        INSUFFICIENT, 11080, 12000,
        r"supports CUDA 11\.8, and this CuPy is built for CUDA 12; update the driver; or use",
    ),
    "no device": (NO_DEVICE, 13000, 13020, r"no CUDA device \(cudaErrorNoDevice.*nvidia-smi"),
    "no visible device": (0, 12080, 12090, r"no CUDA device \(the count of devices is 0\)"),
    "broken driver": (
        "cudaErrorSystemDriverMismatch: forgot to reboot", 13000, 13000,
        r"no CUDA device \(cudaErrorSystemDriverMismatch: forgot to reboot\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_cupy_without_a_device_is_an_error_that_says_why(machine, monkeypatch):
    devices, driver, runtime, message = MACHINES[machine]

    def count():
        if isinstance(devices, str):
            raise CUDARuntimeError(devices)
        return devices

    functions = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
    )
    cupy = SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=functions))
    pretend_installed(monkeypatch, cupy)
    assert_refused(r"backend 'cupy': CuPy 14\.2\.0 is installed but finds .*" + message)


def test_cupy_without_the_libraries_of_cuda_is_an_error_with_the_install_line(monkeypatch):
    import_module = importlib.import_module

    def without_cublas(name):
        if name == "npflow.kernels.gpu":
            raise ImportError("Failure finding libcublasLt.so.13\nLibraries installed here: ...")
        return import_module(name)

    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError)
    pretend_installed(monkeypatch, SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(importlib, "import_module", without_cublas)
    assert_refused(r"needs CUDA's libraries: Failure finding libcublasLt\.so\.13\. pip install")


@pytest.mark.parametrize(
    ("memory", "advice"),
    [
        (
            "store",
            "memory='store' is in use; use memory='recompute' or memory='invert' or a batch_size "
            "below 64",
        ),
        (
            "recompute",
            "memory='recompute' is in use; use memory='invert' or a batch_size below 64",
        ),
        ("invert", "memory='invert' is in use; use a batch_size below 64"),
        (None, "use a batch_size below 64"),
    ],
)
def test_too_little_memory_is_an_error_that_says_what_needs_less(memory, advice):
    cause = MemoryError("Unable to allocate 7.28 TiB for an array.")
    with (
        pytest.raises(OutOfMemoryError) as caught,
        explain_out_of_memory(64, None if memory is None else as_memory(memory)),
    ):
        raise cause
    assert caught.value.__cause__ is cause
    assert str(caught.value) == (
        f"a batch of 64 rows is too large: Unable to allocate 7.28 TiB for an array; {advice}"
    )


def imported_by(statement):
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_npflow_brings_no_heavy_module():
    """Plots, GPUs and frameworks are for those who ask for them."""
    modules = imported_by("import npflow, npflow.training")
    assert not modules & {"cupy", "matplotlib", "torch", "jax", "scipy", "numba", "pooch", "tyro"}


def test_the_reference_needs_no_numba():
    statement = """
import npflow, numpy
flow = npflow.models.realnvp(2, backend="reference")
flow.nll_and_grad(numpy.zeros((3, 2)))
"""
    assert "numba" not in imported_by(statement)


def test_every_name_is_known():
    assert NAMES == ("reference", "numpy", "cupy")
