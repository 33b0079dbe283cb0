"""Where arrays live and which kernels work on them.

    reference   NumPy arrays, kernels in plain NumPy: the specification, to read and to test against
    numpy       NumPy arrays, kernels in Numba: the default on a CPU
    cupy        CuPy arrays, kernels in CUDA C++: a GPU

A Backend is chosen once and passed on explicitly; there is no global current backend. This is the
only module that imports CuPy or the kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from npflow.errors import BackendError, DtypeError

Array = Any  # a NumPy or a CuPy array

NAMES = ("reference", "numpy", "cupy")

_INSTALL = (
    "pip install 'npflow[cuda13]' if nvidia-smi shows CUDA Version 13 or later, 'npflow[cuda12]' "
    "if it shows 12"
)
_ELSE = "use backend 'numpy'"


@dataclass(frozen=True)
class Backend:
    """An array module, a set of kernels and the floating-point type of all parameters."""

    name: str
    xp: Any
    kernels: ModuleType
    dtype: np.dtype

    def array(self, values: Any) -> Array:
        """values as an array of this backend and its dtype; copies only where it must."""
        return self.xp.asarray(values, dtype=self.dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        """array on the host."""
        return array.get() if hasattr(array, "get") else np.asarray(array)

    @property
    def on_device(self) -> bool:
        """Whether reading a number makes the host wait for a device."""
        return self.xp is not np


def get_backend(name: str | Backend = "auto", dtype: Any = None) -> Backend:
    """The backend of that name: "reference", "numpy", "cupy", or "auto".

    "auto" is cupy if a CUDA device answers, else numpy. dtype is float32 (the default) or float64.
    A Backend passes through, with dtype replaced if one is given.

    Raises BackendError if the name is unknown or the backend cannot run here, and DtypeError for
    any other dtype.
    """
    if isinstance(name, Backend):
        return name if dtype is None else get_backend(name.name, dtype)
    try:
        dtype = np.dtype("float32" if dtype is None else dtype)
    except TypeError:
        raise DtypeError(f"dtype is {dtype!r}; expected float32 or float64") from None
    if dtype not in (np.float32, np.float64):
        raise DtypeError(f"dtype is {dtype}; expected float32 or float64")
    if name == "auto":
        name = "cupy" if _cuda_problem() is None else "numpy"
    if name not in NAMES:
        raise BackendError(f"unknown backend {name!r}; choose one of auto, {', '.join(NAMES)}")
    if name == "reference":
        return Backend(name, np, importlib.import_module("npflow.kernels.reference"), dtype)
    if name == "numpy":
        return Backend(name, np, importlib.import_module("npflow.kernels.cpu"), dtype)
    if problem := _cuda_problem():
        raise BackendError(problem)
    xp = importlib.import_module("cupy")
    return Backend(name, xp, importlib.import_module("npflow.kernels.gpu"), dtype)


def _cuda_problem() -> str | None:
    """What keeps the cupy backend from running here, and what to do; None if nothing does."""
    if importlib.util.find_spec("cupy") is None:
        return f"backend 'cupy' needs CuPy, which is not installed: {_INSTALL}; or {_ELSE}"
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # a damaged installation may raise anything
        cause = error.__cause__ or error  # CuPy wraps it in a page of text
        return (
            f"backend 'cupy': CuPy is installed but importing it failed with "
            f"{type(cause).__name__}: {cause}. Uninstall every CuPy that pip list shows, then "
            f"{_INSTALL}; or {_ELSE}"
        )
    runtime = cupy.cuda.runtime
    try:
        if runtime.getDeviceCount() > 0:
            return _library_problem()
        found = "the count of devices is 0"
    except runtime.CUDARuntimeError as error:
        found = str(error)
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion() // 1000
    if driver == 0:
        problem = "no NVIDIA driver; install one, or give the container the GPU (--gpus all)"
    elif driver < 1000 * needed:  # a driver runs every CUDA of its major version and before
        major, minor = driver // 1000, driver % 1000 // 10
        other = f", or install CuPy for it: pip install 'npflow[cuda{major}]'" if major > 11 else ""
        problem = (
            f"an NVIDIA driver that is too old: it supports CUDA {major}.{minor}, and this CuPy is "
            f"built for CUDA {needed}; update the driver{other}"
        )
    else:
        problem = f"no CUDA device ({found}); check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return f"backend 'cupy': CuPy {cupy.__version__} is installed but finds {problem}; or {_ELSE}"


def _library_problem() -> str | None:
    """Whether CUDA's libraries, which CuPy loads at their first use, are missing."""
    try:
        importlib.import_module("npflow.kernels.gpu")
    except ImportError as error:
        missing = str(error).splitlines()[0]
        return f"backend 'cupy' needs CUDA's libraries: {missing}. {_INSTALL}; or {_ELSE}"
    return None
