"""The device as CuPy shows it: memory, copies, streams, events, counters, and what is not there."""

import cuda_on_cpu
import cupy
import numpy as np
import pytest
from cuda_on_cpu.settings import settings


def test_there_is_a_device():
    assert cupy.is_available() and cupy.cuda.runtime.getDeviceCount() == 1
    assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"CPU stand-in"
    assert cupy.cuda.Device().compute_capability == settings.arch == "80"
    with cupy.cuda.Device(0):
        assert cupy.ones(3).sum() == 3
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidDevice"):
        cupy.cuda.Device(1).use()


def test_copies_are_counted():
    host = np.arange(100, dtype="f4")
    with cuda_on_cpu.count() as c:
        x = cupy.asarray(host)
        y = x.copy()
        y += x
        total = float(y.sum())
    assert total == 2 * host.sum()
    assert (c["h2d"], c["h2d_bytes"]) == (1, 400)
    assert (c["d2h"], c["d2h_bytes"]) == (1, 4)
    assert (
        c["launches"] == sum(c["kernels"].values())
        and c["kernels"]["cupy_add__float32_float32_float32"] == 1
    )
    assert c["peak_bytes"] >= 800 and c["allocations"] == 3 and c["overruns"] == 0


def test_copies_into_given_arrays():
    x = cupy.arange(12, dtype="f8").reshape(3, 4)
    out = np.empty((3, 4))
    assert cupy.asnumpy(x, out=out) is out and out[2, 3] == 11
    pinned = cupy.cuda.alloc_pinned_memory(96)
    buffer = np.frombuffer(pinned, np.float64, 12).reshape(3, 4)
    x.get(out=buffer)
    np.testing.assert_array_equal(buffer, out)
    x.set(2 * buffer)
    assert x[2, 3] == 22
    x[1:, :2] = cupy.zeros((2, 2))
    assert x.sum() == 2 * out.sum() - 2 * (4 + 5 + 8 + 9)


def test_copy_of_rows():
    runtime = cupy.cuda.runtime
    x, y = cupy.arange(20, dtype="i4").reshape(4, 5), cupy.zeros((4, 3), "i4")
    runtime.memcpy2D(y.data.ptr, 12, x.data.ptr, 20, 12, 4, runtime.memcpyDeviceToDevice)
    np.testing.assert_array_equal(y.get(), x.get()[:, :3])


def test_copy_in_the_wrong_direction_is_an_error():
    x, host = cupy.zeros(4), np.zeros(4)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidValue"):
        cupy.cuda.runtime.memcpy(
            x.data.ptr, host.ctypes.data, 32, cupy.cuda.runtime.memcpyDeviceToHost
        )


def test_streams_and_events():
    stream = cupy.cuda.Stream(non_blocking=True)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    with stream:
        assert cupy.cuda.get_current_stream() == stream
        start.record()
        x = cupy.ones(1000) * 2
        end.record()
    with cuda_on_cpu.count() as c:
        end.synchronize()
        stream.synchronize()
        cupy.cuda.Device().synchronize()
    assert c["syncs"] == 3
    assert cupy.cuda.get_elapsed_time(start, end) > 0
    assert stream.done and end.done and x.sum() == 2000
    stream.wait_event(end)
    seen = []
    stream.launch_host_func(seen.append, 5)
    assert seen == [5]


def test_memory_pool():
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    x = cupy.zeros(10000, "f4")
    assert 40000 <= pool.used_bytes() - before <= 41000
    del x
    assert pool.used_bytes() == before
    pool.free_all_blocks()
    assert pool.total_bytes() >= pool.used_bytes()
    assert cupy.cuda.runtime.memGetInfo()[1] == settings.memory


def test_out_of_memory(monkeypatch):
    """CuPy's own error, once freed blocks have been given back; then all goes on."""
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(settings.memory + 1, "u1")
    cupy.get_default_memory_pool().free_all_blocks()
    used = cupy.get_default_memory_pool().total_bytes()
    monkeypatch.setattr(settings, "memory", used + 20_000_000)
    held = [cupy.zeros(1_000_000, "f4") for _ in range(4)]
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory allocating 4,000"):
        cupy.zeros(1_000_000, "f4")
    held.pop()
    assert cupy.ones(900_000, "f4").sum() == 900_000
    del held
    assert cupy.ones(4_000_000, "f4").sum() == 4_000_000  # of other size: the pool gave way


def test_allocator_without_a_pool():
    cupy_allocator = cupy.cuda.get_allocator()
    try:
        cupy.cuda.set_allocator(None)
        assert np.isnan(cupy.empty(10).get()).all()
    finally:
        cupy.cuda.set_allocator(cupy_allocator)


@pytest.mark.parametrize("call, error, message", [
    (lambda: cupy.random.normal(size=3), ImportError, "cuRAND .cupy.random. is not provided"),
    (lambda: cupy.random.default_rng(0), NotImplementedError, "default_rng .cuRAND. is not"),
    (lambda: cupy.sort(cupy.ones(3)), NotImplementedError, "sort .Thrust"),
    (lambda: cupy.argsort(cupy.ones(3)), NotImplementedError, "argsort .Thrust"),
    (lambda: cupy.linalg.qr(cupy.eye(3)), ImportError, "cuSOLVER"),
    (lambda: cupy.linalg.slogdet(cupy.eye(3)), ImportError, "cuSOLVER"),
    (lambda: cupy.fft.fft(cupy.ones(4)), ImportError, "cuFFT"),
    (lambda: cupy.cuda.Stream(non_blocking=True).begin_capture(), NotImplementedError, "Capture"),
])  # fmt: skip
def test_what_is_not_there_says_so(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_traps_of_cupy_that_the_readme_names():
    x = cupy.ones(3, "f4")
    assert isinstance(cupy.sum(np.ones(3)), np.floating)  # NumPy's answer, without a word
    with pytest.raises(TypeError, match="Unsupported type"):
        x + np.ones(3, "f4")
    assert (x * np.float64(2)).dtype == "f8" and (x * 2.0).dtype == "f4"
    with cuda_on_cpu.count() as c:
        x[np.array([0, 2])]
    assert c["h2d"] == 1  # an index array from the host is a hidden copy
