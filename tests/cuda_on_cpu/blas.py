"""A libcublas of our own under the real one's name: CuPy links to it, NumPy does the work."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np

from .compile import build_library
from .counting import add_named

SOURCE = Path(__file__).parent / "host_cublas.cpp"
TYPES = (np.float32, np.float64)


class _Matrix(ctypes.Structure):  # mirrors Matrix of host_cublas.cpp
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("leading", ctypes.c_longlong),
        ("stride", ctypes.c_longlong),
        ("transposed", ctypes.c_int),
    ]


def _transposed_view(
    matrix: _Matrix, rows: int, columns: int, count: int, dtype: np.dtype
) -> np.ndarray:
    """op(matrix)ᵀ, of shape (count, columns, rows): column-major memory read as row-major."""
    if matrix.transposed:
        rows, columns = columns, rows
    strides = tuple(n * dtype.itemsize for n in (matrix.stride, matrix.leading, 1))
    extent = (
        sum((n - 1) * stride for n, stride in zip((count, columns, rows), strides, strict=True))
        + dtype.itemsize
    )
    buffer = (ctypes.c_char * max(extent, 0)).from_address(matrix.data)
    view = np.ndarray((count, columns, rows), dtype, buffer, 0, strides)
    return view.swapaxes(1, 2) if matrix.transposed else view


@np.errstate(all="ignore")  # a GPU does not warn
def _gemm(type_, m, n, k, alpha, a, b, beta, c, count):
    """C = alpha op(A) op(B) + beta C, as Cᵀ = alpha op(B)ᵀ op(A)ᵀ + beta Cᵀ."""
    dtype = np.dtype(TYPES[type_])
    out = _transposed_view(c[0], m, n, count, dtype)
    if not k:
        out *= dtype.type(beta)
        return
    left, right = (
        _transposed_view(b[0], k, n, count, dtype),
        _transposed_view(a[0], m, k, count, dtype),
    )
    if alpha == 1 and beta == 0:
        np.matmul(left, right, out=out)
        return
    product = np.matmul(left, right)
    product *= dtype.type(alpha)
    if beta == 0:  # what C held before may be NaN and must not count
        out[...] = product
    else:
        out *= dtype.type(beta)
        out += product


_COUNT = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(
    lambda name: add_named("library_calls", name.decode())
)
_GEMM = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int,
    *[ctypes.c_longlong] * 3,
    ctypes.c_double,
    *[ctypes.POINTER(_Matrix)] * 2,
    ctypes.c_double,
    ctypes.POINTER(_Matrix),
    ctypes.c_longlong,
)(_gemm)


def install(cupy_cublas_module: Path, cuda_major: int) -> None:
    """Loads the library, so that CuPy's module finds it there when it asks for libcublas."""
    text = SOURCE.read_text()
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(cupy_cublas_module)],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = sorted(set(re.findall(r"\b(cublas\w+)", symbols.stdout)))
    provided = set(re.findall(r"\bint (cublas\w+)\(", text)) | {
        f"cublas{x}{name}" for x in "SD" for name in re.findall(r"int cublas##X##(\w+)\(", text)
    }
    missing = "".join(
        f'extern "C" int {name}() {{ return cuda_on_cpu_missing("{name}"); }}\n'
        for name in wanted
        if name not in provided
    )
    soname = f"libcublas.so.{cuda_major}"
    path = build_library(text + missing, f"-Wl,-soname,{soname}", name=soname)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    for name, callback in (("cuda_on_cpu_count", _COUNT), ("cuda_on_cpu_gemm", _GEMM)):
        ctypes.c_void_p.in_dll(library, name).value = ctypes.cast(callback, ctypes.c_void_p).value
