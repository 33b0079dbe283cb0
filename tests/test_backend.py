"""Backends by name, and what importing npflow brings along."""

import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import npflow
from npflow.backend import NAMES, get_backend
from npflow.errors import BackendError, DtypeError

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


def test_cupy_that_is_not_installed_is_an_error_with_the_install_line(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cupy" else find_spec(name)
    )
    with pytest.raises(BackendError, match=r"pip install 'npflow\[cuda12\]'.*npflow\[cuda13\]"):
        get_backend("cupy")
    assert get_backend("auto").name == "numpy"


def test_cupy_without_a_device_is_an_error_that_says_so(monkeypatch):
    class CuPy:
        __version__ = "14.0"

        @staticmethod
        def is_available():
            return False

    monkeypatch.setitem(sys.modules, "cupy", CuPy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(BackendError, match=r"CuPy 14\.0 is installed but finds no CUDA device"):
        get_backend("cupy")
    assert get_backend("auto").name == "numpy"


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
