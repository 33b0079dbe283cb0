"""The digits of a result do not tell whether its kernels were compiled in the same process.

A run that compiles its kernels and one that resumes it with kernels from Numba's cache must agree
to the bit. Here are the kernels that call other compiled functions which may not be inlined.
"""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from npflow.kernels import cpu


def _calls(dtype):
    """name of a kernel: its arguments."""
    rng = np.random.default_rng(0)

    def make(*shape):
        return rng.normal(size=shape).astype(dtype)

    x, g, dlog_det, scale, total = make(263, 7), make(263, 7), make(263), make(7), make(7)
    params, spline, mixture = make(263, 14), make(263, 23 * 7), make(263, 9 * 7)
    order, tanh = np.random.default_rng(1).permutation(7), np.tanh(g)
    weight, dweight, bias, dbias, dy = make(7, 40), make(7, 40), make(40), make(40), make(263, 40)
    image, dimage = make(5, 6, 7, 18), make(5, 6, 7, 20)
    kernel, dkernel, channels, dchannels = (
        make(3, 3, 18, 20),
        make(3, 3, 18, 20),
        make(20),
        make(20),
    )
    return {
        "linear_forward": (x, weight, bias, "elu"),
        "affine_forward": (x, params, scale),
        "mixture_log_prob": (x, mixture),
        "rational_quadratic_forward": (x, spline, 3),
        "split": (x, order[:3], order[3:]),
        "conv_forward": (image, kernel, channels, "elu"),
        "concat_elu_forward": (image,),
        "actnorm_forward": (image, make(18), make(18)),
        "linear_backward": (dy, x, np.tanh(dy), weight, "tanh", dweight, dbias),
        "affine_backward": (g, dlog_det, x, tanh, scale, total),
        "mixture_backward": (x, mixture, dlog_det),
        "rational_quadratic_backward": (g, dlog_det, x, spline, 3),
        "logit_backward": (g, dlog_det, x, 0.05, 256),
        "conv_backward": (dimage, image, np.tanh(dimage), kernel, "tanh", dkernel, dchannels),
        "gated_norm_backward": (
            image,
            image,
            make(5, 6, 7, 36),
            make(18),
            1e-5,
            make(18),
            make(18),
        ),
    }


def _digests(names):
    """A hash of all that each kernel returns and of its arguments, some of which it adds to."""
    digests = {}
    for dtype in ("float32", "float64"):
        for name, args in _calls(dtype).items():
            if name in names:
                result = getattr(cpu, name)(*args)
                arrays = [*(result if isinstance(result, tuple) else (result,)), *args]
                data = b"".join(a.tobytes() for a in arrays if isinstance(a, np.ndarray))
                digests[f"{name} {dtype}"] = hashlib.sha256(data).hexdigest()
    return digests


@pytest.mark.slow
def test_compiled_and_cached_kernels_give_the_same_bits(tmp_path):
    """The first process compiles one half, the second loads it and compiles the other half, the
    third loads all.
    """

    def run(names):
        command = [sys.executable, __file__, *names]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        digests = json.loads(subprocess.check_output(command, env=environment))
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
        return digests, files

    names = list(_calls("float32"))
    half, files_of_half = run(names[: len(names) // 2])
    mixed, files = run(names)
    loaded, files_after = run(names)
    assert 0 < len(files_of_half) < len(files)
    assert files_after == files  # the third process compiled nothing
    assert mixed == loaded
    assert half == {name: loaded[name] for name in half}


if __name__ == "__main__":
    print(json.dumps(_digests(sys.argv[1:])))
