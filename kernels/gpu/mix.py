"""The channels of every pixel times one matrix: cuBLAS alone."""

import cupy
import cupy.cublas
from cupy import ndarray

from .launch import ARRAY, RESULT, checked_arrays


def mix_forward(x: ndarray, weight: ndarray) -> ndarray:
    """z = x W."""
    x, weight = checked_arrays("mix_forward", ARRAY, x=x, weight=weight)
    return cupy.matmul(_rows(x), weight).reshape(*x.shape[:-1], weight.shape[1])


def mix_backward(dz: ndarray, x: ndarray, weight: ndarray, dweight: ndarray) -> ndarray:
    """dx = dz W^T; dweight is added to."""
    dz, x, weight = checked_arrays("mix_backward", ARRAY, dz=dz, x=x, weight=weight)
    checked_arrays("mix_backward", RESULT, dz=dz, dweight=dweight)
    if x.size:
        cupy.cublas.gemm("T", "N", _rows(x), _rows(dz), out=dweight, alpha=1.0, beta=1.0)
    return cupy.matmul(_rows(dz), weight.T).reshape(x.shape)


def _rows(x: ndarray) -> ndarray:
    return x.reshape(-1, x.shape[-1])
