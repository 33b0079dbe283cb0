"""Convolution of channels-last images with its activation; formulas in reference/conv.py.

The products are cuBLAS's, on one row a pixel. With thin inputs the k x k patches around each pixel
are laid out as rows and multiplied. With thin outputs it is the other way round: each pixel is
multiplied first, by all k k matrices side by side, and the patches of products are added where they
belong. Either way the patches are of the thinner side, and so few images at a time that they take
little memory. The gradient exchanges the two: it takes patches where the other way adds them.
"""

from collections.abc import Iterator

import cupy
import cupy.cublas
import numpy as np
from cupy import ndarray

from .launch import ARRAY, RESULT, Family, checked_arrays, empty_like, per_column, per_row
from .linear import LEAKY_SLOPE, _activate_backward, _add_bias_and_activate, _code

_PATCHES_BYTES = 64 << 20  # of the images that are taken at a time

_family = Family("conv")
_take_patches = _family.kernel(
    "take_patches", x=ARRAY, patches=RESULT, rows=np.int64,
    h=np.int32, w=np.int32, c=np.int32, k=np.int32,
)  # fmt: skip
_add_patches = _family.kernel(
    "add_patches", patches=ARRAY, x=RESULT, rows=np.int64,
    h=np.int32, w=np.int32, c=np.int32, k=np.int32,
)  # fmt: skip


def conv_forward(x: ndarray, weight: ndarray, bias: ndarray, activation: str) -> ndarray:
    """y[b, i, j] = act(sum_{u, v} x[b, i + u - k//2, j + v - k//2] W[u, v] + bias)."""
    x, weight = checked_arrays("conv_forward", ARRAY, x=x, weight=weight)
    k, _, n_in, n_out = weight.shape
    y = cupy.empty((*x.shape[:3], n_out), x.dtype)
    if k == 1:
        _multiply("N", "N", _rows(x), weight[0, 0], _rows(y))
    elif n_in <= n_out:
        for images in _chunks(x, k):
            _multiply("N", "N", _patches(x[images], k), _rows(weight), _rows(y[images]))
    else:
        turned = _turned(weight)
        for images in _chunks(y, k):
            _add(cupy.matmul(_rows(x[images]), turned), k, y[images])
    rows = y.size // n_out
    _add_bias_and_activate(
        y.dtype, per_row(rows, n_out), y, bias, _code(activation), LEAKY_SLOPE, rows, n_out
    )
    return y


def conv_backward(
    dy: ndarray,
    x: ndarray,
    y: ndarray,
    weight: ndarray,
    activation: str,
    dweight: ndarray,
    dbias: ndarray,
) -> ndarray:
    """Gradient of conv_forward: returns dx; dweight and dbias are added to.

    dy may be overwritten by da = dy act'(y).
    """
    dy, x, weight = checked_arrays("conv_backward", ARRAY, dy=dy, x=x, weight=weight)
    checked_arrays("conv_backward", RESULT, dy=dy, dweight=dweight)
    k, _, n_in, n_out = weight.shape
    _backward_to_bias(dy, y, _code(activation), dbias)
    dx = empty_like(x)
    if k == 1:
        _multiply("T", "N", _rows(x), _rows(dy), dweight[0, 0], added=True)
        _multiply("N", "T", _rows(dy), weight[0, 0], _rows(dx))
    elif n_in <= n_out:
        for images in _chunks(x, k):
            da = _rows(dy[images])
            _multiply("T", "N", _patches(x[images], k), da, _rows(dweight), added=True)
            _add(cupy.matmul(da, _rows(weight).T), k, dx[images])
    else:
        turned, dturned = _turned(weight), cupy.zeros((n_in, k * k * n_out), x.dtype)
        for images in _chunks(dy, k):
            patches = _patches(dy[images], k)
            _multiply("T", "N", _rows(x[images]), patches, dturned, added=True)
            _multiply("N", "T", patches, turned, _rows(dx[images]))
            del patches  # before the next ones are made
        dweight += dturned.reshape(n_in, k, k, n_out)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return dx


def _backward_to_bias(dy: ndarray, y: ndarray, activation: int, dbias: ndarray) -> None:
    """da = dy act'(y) in place of dy; dbias += its sum over images and pixels.

    Linear's kernel has one block a few columns. Two of them, the first with a column for each
    number of an image, keep more of the GPU busy than one with a column a channel.
    """
    batch, height, width, n_out = y.shape
    pixels = height * width
    parts = cupy.zeros((pixels, n_out), y.dtype)
    _activate_backward(
        y.dtype, per_column(parts.size), dy, y, activation, LEAKY_SLOPE, parts, batch, parts.size
    )
    _activate_backward(
        y.dtype, per_column(n_out), parts, parts, _code("identity"), LEAKY_SLOPE, dbias,
        pixels, n_out,
    )  # fmt: skip


def _rows(array: ndarray) -> ndarray:
    """The same memory as a matrix with the last axis for columns, or a ValueError."""
    return array.reshape(-1, array.shape[-1], copy=False)


def _turned(weight: ndarray) -> ndarray:
    """By 180 degrees, as (n_in, k k n_out): what a pixel gives to the k x k outputs around it.

    An output to the left of the pixel has the pixel to its right.
    """
    return weight[::-1, ::-1].transpose(2, 0, 1, 3).reshape(weight.shape[2], -1)


def _multiply(
    trans_a: str, trans_b: str, a: ndarray, b: ndarray, out: ndarray, added: bool = False
) -> None:
    """out = a b, or out += a b, of the matrices or of their transposes ("T")."""
    if a.size:
        cupy.cublas.gemm(trans_a, trans_b, a, b, out=out, alpha=1.0, beta=float(added))


def _chunks(images: ndarray, k: int) -> Iterator[slice]:
    """The images in runs whose patches fit into _PATCHES_BYTES, of one image at least."""
    step = max(1, _PATCHES_BYTES // max(1, k * k * images[:1].nbytes))
    for start in range(0, len(images), step):
        yield slice(start, start + step)


def _patches(x: ndarray, k: int) -> ndarray:
    """The k x k pixels around each pixel: (B H W, k k C)."""
    batch, height, width, channels = x.shape
    patches = cupy.empty((batch * height * width, k * k * channels), x.dtype)
    size = per_row(batch * height, width * patches.shape[1])
    _take_patches(x.dtype, size, x, patches, batch * height, height, width, channels, k)
    return patches


def _add(patches: ndarray, k: int, out: ndarray) -> None:
    """out = the sums of the patches at the pixels they are of, the adjoint of `_patches`."""
    batch, height, width, channels = out.shape
    size = per_row(batch * height, width * channels)
    _add_patches(out.dtype, size, patches, out, batch * height, height, width, channels, k)
