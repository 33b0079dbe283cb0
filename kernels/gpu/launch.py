"""Compiles the CUDA sources and launches their kernels with every argument checked.

CuPy does not check what it hands to a kernel of ours: a Python float for a `float` parameter
arrives as 0.0, a float64 array for a `float*` or a strided array is taken without a word. Here each
kernel states its parameters once. What does not fit is a TypeError; a strided array that is only
read is copied:

    family = Family("example")                                      # the templates of example.cu
    scale = family.kernel("scale", x=ARRAY, factor=REAL, y=RESULT, n=np.int64)
    scale(x.dtype, per_element(x.size), x, 0.5, y, x.size)          # scale<float> or scale<double>
"""

import re
from collections.abc import Callable
from importlib.resources import files
from numbers import Integral, Real
from typing import ClassVar

import cupy
import numpy as np
from numpy.typing import DTypeLike

# What a parameter may be. Other scalars are named by a NumPy type: np.int64 for a long long.
REAL = "a real number"  # T
ARRAY = "an array of reals"  # const T*
RESULT = "an array of reals to write"  # T*
INDICES = "an array of indices"  # long long*
DOUBLES = "an array of doubles"  # double*, whatever T is
ARRAYS = "a tuple of arrays of reals"  # Arrays<T> of arrays.cuh, passed by value
INDEX_ARRAYS = "a tuple of arrays of indices"  # Arrays<long long>
MAX_ARRAYS = 16  # of such a tuple, as in arrays.cuh

Kind = str | type[np.generic]
Launch = tuple[tuple[int, ...], tuple[int, ...]]  # (grid, block)

_SOURCES = files("npflow.kernels") / "cuda"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_ARRAY_DTYPES = {INDICES: np.dtype(np.int64), DOUBLES: np.dtype(np.float64)}
_ELEMENTS = {ARRAYS: RESULT, INDEX_ARRAYS: INDICES}  # no copy would live long enough
_POINTERS = np.dtype([("at", np.uint64, (MAX_ARRAYS,))])
_TYPE_NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


def per_element(n: int) -> Launch:
    """One thread an element; the kernel strides over the grid."""
    return (min(-(-n // 256), 65535),), (256,)


def per_row(rows: int, width: int) -> Launch:
    """One block a row of `width` elements; whole warps, as a sum over the block needs them."""
    return (min(rows, 65535),), (min(-(-width // 32), 8) * 32,)


def per_column(columns: int) -> Launch:
    """One block a tile of up to 8 columns (32 bytes, a sector, in float): 512 threads."""
    width = min(8, 1 << (columns - 1).bit_length())
    return (-(-columns // width),), (width, 512 // width)


def per_tile(rows: int, columns: int, parts: int = 1) -> Launch:
    """One block of 256 threads a tile of 64 x 64 of each part, as cuda/tile.cuh needs it."""
    return (-(-rows // 64), -(-columns // 64), parts), (256,)


def per_tile_backward(batch: int, n_in: int, n_out: int) -> Launch:
    """One block a tile of dweight, one a tile of dx, one 32 numbers of dbias: cuda/product.cuh."""
    tiles_batch, tiles_in, tiles_out = (-(-n // 64) for n in (batch, n_in, n_out))
    return (tiles_in * tiles_out + tiles_batch * tiles_in + -(-n_out // 32),), (256,)


def empty_like(array: cupy.ndarray) -> cupy.ndarray:
    """A C-contiguous array of this shape and dtype, whatever the strides of this one."""
    return cupy.empty(array.shape, array.dtype)


class Family:
    """The kernels of cuda/<name>.cu, compiled together at first use, once for each dtype."""

    launches: ClassVar[int] = 0  # of every kernel of every family so far

    def __init__(self, name: str) -> None:
        self.name = name
        self._kernels: list[str] = []
        self._functions: dict[tuple[str, np.dtype], Callable[..., None]] = {}

    def kernel(self, name: str, **parameters: Kind) -> Callable[..., None]:
        """The launcher of the template `name`, with its parameters in the order of the source.

        Call it as launcher(dtype, (grid, block), *arguments). A grid of zero blocks does nothing.
        """
        self._kernels.append(name)
        kinds = tuple(parameters.items())

        def launch(dtype: DTypeLike, size: Launch, *arguments: object) -> None:
            dtype = np.dtype(dtype)
            if dtype not in _TYPE_NAMES:
                raise TypeError(f"{name}: dtype {dtype}; expected float32 or float64")
            if len(arguments) != len(kinds):
                raise TypeError(
                    f"{name}: {len(arguments)} arguments; expected {', '.join(parameters)}"
                )
            checked = []
            for (parameter, kind), argument in zip(kinds, arguments, strict=True):
                try:
                    checked.append(_checked(kind, argument, dtype))
                except TypeError as error:
                    raise TypeError(f"{name}: {parameter} {error}") from None
            if min(size[0]) > 0:
                Family.launches += 1
                self._function(name, dtype)(*size, tuple(checked))

        return launch

    def _function(self, name: str, dtype: np.dtype) -> Callable[..., None]:
        if (name, dtype) not in self._functions:
            self._compile(dtype)
        return self._functions[name, dtype]

    def _compile(self, dtype: np.dtype) -> None:
        expressions = {kernel: f"{kernel}<{_TYPE_NAMES[dtype]}>" for kernel in self._kernels}
        module = cupy.RawModule(
            code=read_source(f"{self.name}.cu"),
            options=("-std=c++17",),
            name_expressions=list(expressions.values()),
        )
        for kernel, expression in expressions.items():
            self._functions[kernel, dtype] = module.get_function(expression)


def checked_arrays(kernel: str, kind: Kind, **arrays: cupy.ndarray) -> list[cupy.ndarray]:
    """The arrays as a launcher would take them, of the first one's dtype: for what cuBLAS does."""
    found, dtype = [], next(iter(arrays.values())).dtype
    for parameter, array in arrays.items():
        try:
            found.append(_checked(kind, array, dtype))
        except TypeError as error:
            raise TypeError(f"{kernel}: {parameter} {error}") from None
    return found


def read_source(name: str) -> str:
    """The text of cuda/<name> with that of our headers in the place of their first #include.

    They go into the text because CuPy's cache of binaries would not see a header change.
    """
    included = set()

    def expand(name: str) -> str:
        included.add(name)
        return _INCLUDE.sub(
            lambda include: "" if include[1] in included else expand(include[1]),
            (_SOURCES / name).read_text(),
        )

    return expand(name)


def _checked(kind: Kind, argument: object, dtype: np.dtype) -> cupy.ndarray | np.generic:
    """The argument as the kernel's parameter needs it, or a TypeError that says what it is."""
    if kind in (ARRAY, RESULT) or kind in _ARRAY_DTYPES:
        wanted = _ARRAY_DTYPES.get(kind, dtype)
        if not isinstance(argument, cupy.ndarray):
            raise TypeError(f"is a {type(argument).__name__}; expected a CuPy array")
        if argument.dtype != wanted:
            raise TypeError(f"has dtype {argument.dtype}; expected {wanted}")
        if argument.flags.c_contiguous:
            return argument
        if kind == ARRAY:
            return cupy.ascontiguousarray(argument)
        raise TypeError("is not C-contiguous; pass cupy.ascontiguousarray of it")
    if kind in _ELEMENTS:
        if not isinstance(argument, tuple) or len(argument) > MAX_ARRAYS:
            given = f"{len(argument)} arrays" if isinstance(argument, tuple) else repr(argument)
            raise TypeError(f"is {given}; expected a tuple of up to {MAX_ARRAYS} arrays")
        pointers = np.zeros((), _POINTERS)
        for i, array in enumerate(argument):
            try:
                pointers["at"][i] = _checked(_ELEMENTS[kind], array, dtype).data.ptr
            except TypeError as error:
                raise TypeError(f"[{i}] {error}") from None
        return pointers[()]
    scalar: type[np.generic] = dtype.type if isinstance(kind, str) else kind
    number = Real if issubclass(scalar, np.floating) else Integral
    if not isinstance(argument, number) or isinstance(argument, bool):
        raise TypeError(f"is {argument!r} ({type(argument).__name__}); expected {scalar.__name__}")
    return scalar(argument)
