"""Bugs that a GPU answers with wrong numbers, a hang or nothing, and what is said of them here."""

import cuda_on_cpu
import cupy
import numpy as np
import pytest
from cuda_on_cpu import counting
from cuda_on_cpu.launch import KernelError
from cuda_on_cpu.settings import settings

CODE = r"""
extern "C" __global__ void sum_without_barrier(const float* x, float* out) {
  __shared__ float partial[128];
  int i = threadIdx.x;
  partial[i] = x[i];
  for (int step = 64; step > 0; step /= 2) {
    if (i < step) partial[i] += partial[i + step];   // no __syncthreads() on either side
  }
  if (i == 0) *out = partial[0];
}
extern "C" __global__ void one_too_many(float* x, int n) { for (int i = 0; i <= n; i++) x[i] = 1; }
extern "C" __global__ void one_too_early(float* x, int n) { for (int i = -1; i < n; i++) x[i] = 1; }
extern "C" __global__ void read_too_far(float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
extern "C" __global__ void unset_shared(float* x) {
  __shared__ float s[32];
  if (threadIdx.x) s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void divergent(float* x) {
  if (threadIdx.x < 5) {
    __syncthreads();
    x[0] = 1;
  } else {
    __syncthreads();
  }
}
extern "C" __global__ void early_exit(float* x, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}
extern "C" __global__ void absent_lanes(float* x) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);
}
extern "C" __global__ void not_in_mask(float* x) { x[0] = __shfl_sync(0xffff, x[0], 0); }
extern "C" __global__ void past_dynamic_shared(float* x) {
  extern __shared__ float s[];
  s[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void deep(float* x) {
  volatile char big[80000];
  for (int i = 0; i < 80000; i++) big[i] = i;
  x[0] = big[7];
}
extern "C" __global__ void fill(float* y, float a, int n) {
  if (threadIdx.x < n) y[threadIdx.x] = a;
}
extern "C" __global__ void fill_long(long long* y, long long value) { y[threadIdx.x] = value; }
__global__ void not_extern_c(float* x) {}
"""


def kernel(name):
    return cupy.RawModule(code=CODE).get_function(name)


def zeros(n=32, dtype="f4"):
    return cupy.zeros(n, dtype)


def test_missing_barrier_shows_in_some_thread_order():
    x = cupy.arange(128, dtype="f4")
    errors = []
    for order in ("forward", "reverse", "random:1"):
        with cuda_on_cpu.thread_order(order):
            out = zeros(1)
            kernel("sum_without_barrier")((1,), (128,), (x, out))
            errors.append(abs(float(out[0]) - 128 * 127 / 2))
    assert (
        not errors[0] < 1 and not errors[2] < 1
    )  # wrong, or NaN from shared memory that was not set yet
    assert errors[1] == 0  # the order that happens to be right: one order is not enough


@pytest.mark.parametrize("name, message", [
    ("one_too_many", "write 1 to 4 bytes after the end of an allocation of 128 bytes"),
    ("one_too_early", "write 1 to 4 bytes before the start of an allocation of 128 bytes"),
])  # fmt: skip
def test_write_outside_an_array(name, message):
    x = zeros()
    with pytest.raises(KernelError, match=f"{name}: {message}"):
        kernel(name)((1,), (1,), (x, np.int32(32)))
    del x
    counting.overruns.clear()  # this one was expected


def test_write_outside_an_array_by_an_elementwise_kernel():
    x = zeros()
    before = cuda_on_cpu.counters()["overruns"]
    cupy.ElementwiseKernel("int32 n", "raw float32 x", "x[i + 1] = 1", "shifted")(
        np.int32(0), x, size=32
    )
    del x  # found when the memory goes back
    assert cuda_on_cpu.counters()["overruns"] == before + 1
    assert counting.overruns.pop().startswith("write 1 to 4 bytes after the end")


def test_read_outside_an_array_gives_nan():
    x, y = cupy.ones(32, "f4"), zeros()
    kernel("read_too_far")((1,), (32,), (x, y))
    assert np.isnan(y.get()[31]) and (y.get()[:31] == 1).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_unset_memory_is_nan(dtype):
    for _ in range(2):  # the second time, memory that was in use before
        x = cupy.empty(100, dtype)
        assert np.isnan(x.get()).all()
        x[...] = 1
        del x


def test_unset_shared_memory_is_nan():
    x = zeros()
    kernel("unset_shared")((1,), (32,), (x,))
    assert np.isnan(x.get()[0]) and (x.get()[1:] == 1).all()


@pytest.mark.parametrize("name, threads, arguments, message", [
    ("divergent", 32, (), "threads of one block wait at line 22 and at line 25"),
    ("early_exit", 32, (np.int32(5),), "__syncthreads at line 30 is never reached by 27 threads"),
    ("absent_lanes", 32, (), "deadlock: 16 threads wait for lanes that have exited"),
    ("not_in_mask", 32, (), r"lane is not in its mask \(block 0,0,0 thread 16,0,0"),
    ("deep", 1, (), "a thread needs more than 65536 bytes of stack"),
])  # fmt: skip
def test_broken_rule(name, threads, arguments, message):
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=message):
        kernel(name)((1,), (threads,), (zeros(), *arguments))
    x = zeros()
    kernel("fill")((1,), (32,), (x, np.float32(2), np.int32(32)))  # the next launch is not affected
    assert (x.get() == 2).all()


def test_cuda_itself_lets_exited_threads_miss_a_barrier(monkeypatch):
    monkeypatch.setattr(settings, "strict", False)
    x = zeros()
    kernel("early_exit")((1,), (32,), (x, np.int32(5)))
    assert x.get().sum() == 5


def test_write_past_dynamic_shared_memory():
    with pytest.raises(KernelError, match="write past the 124 bytes of dynamic shared memory"):
        kernel("past_dynamic_shared")((1,), (32,), (zeros(),), shared_mem=124)
    kernel("past_dynamic_shared")((1,), (32,), (zeros(),), shared_mem=128)


@pytest.mark.parametrize("arguments, message", [
    ((zeros, 1.5, np.int32(4)), "argument 1 is a float, passed as float64 of 8 bytes; "
                                "the parameter is floating-point of 4 bytes"),
    ((zeros, np.float64(1.5), np.int32(4)), "argument 1 is a float64"),
    ((zeros, 1, np.int32(4)), "argument 1 is a int"),
    ((zeros, np.float32(1), np.int64(4)), "argument 2 is a int64"),
    ((zeros, np.float32(1), 2**40), "argument 2 is the int 1099511627776, which does not fit"),
    ((lambda: zeros(32, "f8"), np.float32(1), np.int32(4)), "argument 0 is an array of float64"),
    ((zeros, zeros, np.int32(4)), "argument 1 is an array"),
    ((zeros, np.float32(1)), "2 arguments for 3 parameters"),
])  # fmt: skip
def test_argument_that_does_not_fit(arguments, message):
    arguments = tuple(argument() if callable(argument) else argument for argument in arguments)
    with pytest.raises(TypeError, match=message):
        kernel("fill")((1,), (32,), arguments)


def test_narrow_scalar_for_a_wide_parameter():
    with pytest.raises(
        TypeError, match="passed as int32 of 4 bytes; the parameter is integer of 8 bytes"
    ):
        kernel("fill_long")((1,), (32,), (zeros(32, "i8"), np.int32(1)))


def test_python_float_arrives_as_zero_when_unchecked(monkeypatch):
    """What CuPy and a GPU make of it."""
    monkeypatch.setattr(settings, "check_arguments", False)
    x = cupy.ones(4, "f4")
    kernel("fill")((1,), (4,), (x, 1.5, 4))
    assert (x.get() == 0).all()


@pytest.mark.parametrize("grid, block, shared, message", [
    ((1,), (1025,), 0, "block"), ((1,), (32, 64), 0, "2048 threads"), ((1, 70000), (1,), 0, "grid"),
    ((1,), (32,), 50000, "50000 bytes of dynamic shared memory"),
])  # fmt: skip
def test_invalid_configuration(grid, block, shared, message):
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=message):
        kernel("fill")(grid, block, (zeros(), np.float32(1), np.int32(1)), shared_mem=shared)


def test_opting_in_to_more_shared_memory():
    fill = kernel("fill")
    fill.max_dynamic_shared_size_bytes = 90000
    fill((1,), (32,), (zeros(), np.float32(1), np.int32(1)), shared_mem=90000)


@pytest.mark.parametrize("name", ["not_there", "not_extern_c"])
def test_missing_kernel(name):
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND"):
        kernel(name)


def test_compile_error_is_cupys_own():
    module = cupy.RawModule(code='extern "C" __global__ void k(float* x) { x[0] = y; }')
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"kernel.cu:1:.*y.*not declared"):
        module.get_function("k")
