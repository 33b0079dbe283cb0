"""Raw kernels, and those that CuPy writes, in every thread order."""

from pathlib import Path

import cuda_on_cpu
import cupy
import numpy as np
import pytest

SOURCE = (Path(__file__).parent / "kernels.cu").read_text()
ORDERS = ["forward", "reverse", "random:1", "warps"]
rng = np.random.default_rng(1)


@pytest.fixture(params=ORDERS, autouse=True)
def order(request):
    with cuda_on_cpu.thread_order(request.param):
        yield request.param


@pytest.fixture(params=["float32", "float64"])
def real(request):
    return np.dtype(request.param)


def raw_module(real="float32"):
    name = {"float32": "float", "float64": "double"}[str(real)]
    return cupy.RawModule(code=SOURCE, options=(f"-DREAL={name}",))


def close(found, expected, real):
    np.testing.assert_allclose(
        found,
        expected,
        **(dict(rtol=2e-5, atol=2e-5) if real == "float32" else dict(rtol=1e-12, atol=1e-12)),
    )


def coupling(real, rows=13, columns=37):
    x, raw, t = (rng.standard_normal((rows, columns)).astype(real) for _ in range(3))
    s = 1.7 * np.tanh(raw.astype("float64"))
    return x, raw, t, x * np.exp(s) + t, s.sum(1)


def test_tree_reduction(real):
    x, raw, t, y, log_det = coupling(real)
    found_y, found_log_det = cupy.empty_like(cupy.asarray(x)), cupy.empty(len(x), real)
    arguments = (
        *map(cupy.asarray, (x, raw, t)),
        found_y,
        found_log_det,
        real.type(1.7),
        np.int32(x.shape[1]),
    )
    kernel = raw_module(real).get_function("coupling_tree")
    kernel((len(x),), (64,), arguments, shared_mem=64 * real.itemsize)
    close(found_y.get(), y, real)
    close(found_log_det.get(), log_det, real)


@pytest.mark.parametrize("threads", [32, 96, 256])
def test_shuffle_reduction(real, threads):
    x = cupy.asarray(rng.standard_normal((5, 301)).astype(real))
    out = cupy.empty(5, real)
    raw_module(real).get_function("row_sum_shuffle")((5,), (threads,), (x, out, np.int32(301)))
    close(out.get(), x.get().sum(1), real)


def test_barrier_free_kernel(real):
    p, g, m, v = (rng.standard_normal(1000).astype(real) for _ in range(4))
    v = v * v
    on_device = [cupy.asarray(a) for a in (p, g, m, v)]
    scalars = [real.type(value) for value in (1e-3, 0.9, 0.999, 1e-8)]
    raw_module(real).get_function("adam")((8,), (128,), (*on_device, *scalars, np.int64(1000)))
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    close(on_device[0].get(), p - 1e-3 * m / (np.sqrt(v) + 1e-8), real)


def test_atomics(real):
    x, out = cupy.asarray(rng.standard_normal((100, 7)).astype(real)), cupy.zeros(7, real)
    raw_module(real).get_function("column_sum_atomic")(
        (6,), (128,), (x, out, np.int32(7), np.int64(700))
    )
    close(out.get(), x.get().sum(0), real)


def test_three_dimensional_grid_and_block():
    out = cupy.full((8, 6, 4), -1, np.int32)
    raw_module().get_function("index_3d")((2, 3, 2), (2, 2, 4), (out,))
    z, y, x = np.indices((8, 6, 4))
    np.testing.assert_array_equal(out.get(), x + 100 * y + 10000 * z)


def test_warp_primitives():
    out = cupy.empty((48, 6), np.int32)
    raw_module().get_function("warp_primitives")((1,), (48,), (out,))
    odd, count, any_, all_, swapped, broadcast = out.get().T
    i = np.arange(48)
    lane = i % 32
    assert (odd[:32].view("u4") == 0xAAAAAAAA).all() and (odd[32:] == 0xAAAA).all()
    assert (count == 40).all() and (any_ == (i < 32)).all() and (all_ == 1).all()
    np.testing.assert_array_equal(
        swapped, np.where(lane < 16, i ^ 1, np.where(lane == 16, i, i - 1))
    )
    np.testing.assert_array_equal(broadcast, i // 8 * 8 + 5)


def test_constant_and_device_variables():
    module = raw_module()
    pointer = module.get_global("coefficients")
    cupy.ndarray(3, np.float32, pointer)[:] = cupy.asarray([1, 2, 3], np.float32)
    x = cupy.arange(5, dtype=np.float32)
    y = cupy.empty_like(x)
    module.get_function("polynomial")((1,), (32,), (x, y, np.int32(5)))
    np.testing.assert_array_equal(y.get(), 1 + 2 * x.get() + 3 * x.get() ** 2)
    assert cupy.ndarray(1, np.int32, module.get_global("calls")).get()[0] >= 1


def test_integer_intrinsics():
    x = rng.integers(0, 2**32, 100, dtype=np.uint32)
    out = cupy.empty(100, np.uint32)
    raw_module().get_function("mix")((2,), (64,), (cupy.asarray(x), out, np.int32(100)))
    high = ((x.astype("u8") * 0xD2511F53) >> 32).astype("u4")
    reversed_bits = np.array([int(f"{n:032b}"[::-1], 2) for n in x], "u4")
    np.testing.assert_array_equal(
        out.get(), high ^ (x << 7 | x >> 25) ^ np.bitwise_count(x) ^ reversed_bits
    )


def test_templates():
    code = """
    namespace maths {
      template <class T> __device__ T twice(T x) {
        __shared__ T unused[2];
        unused[0] = x;
        return 2 * x;
      }
    }
    template <class T, int N> __global__ void scale(T* x, T a) {
      __shared__ T copy[N];
      copy[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = a * maths::twice(copy[N - 1 - threadIdx.x]);
    }"""
    names = ("scale<float, 5>", "scale<double, 5>")
    module = cupy.RawModule(code=code, name_expressions=names, options=("-std=c++17",))
    for name, dtype in zip(names, (np.float32, np.float64), strict=True):
        x = cupy.arange(5, dtype=dtype)
        module.get_function(name)((1,), (5,), (x, dtype(10)))
        np.testing.assert_array_equal(x.get(), [80, 60, 40, 20, 0])


def test_kernels_that_cupy_writes():
    x, y = (cupy.asarray(rng.standard_normal((40, 30)).astype("f4")) for _ in range(2))
    affine = cupy.ElementwiseKernel("T x, T s", "T y", "y = x * exp(s) + i", "affine")
    norm = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm")

    @cupy.fuse()
    def fused(x, y):
        return cupy.sqrt(x * x + 1) * y

    a, b = x.get().astype("f8"), y.get().astype("f8")
    np.testing.assert_allclose(
        affine(x, y).get(), a * np.exp(b) + np.arange(1200).reshape(40, 30), rtol=1e-5, atol=1e-5
    )
    close(norm(x, axis=1).get(), np.sqrt((a * a).sum(1)), "float32")
    close(fused(x, y).get(), np.sqrt(a * a + 1) * b, "float32")
