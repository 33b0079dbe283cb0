"""Other versions are refused, with a message that names the supported ones."""

import importlib.metadata
import platform
import shutil

import pytest
from cuda_on_cpu.supported import UnsupportedError, check_platform


def installed(monkeypatch, **versions):
    def version(name):
        if name.replace("-", "_") not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("name", ["cupy_cuda13x", "cupy_cuda12x"])
def test_supported(monkeypatch, name):
    installed(monkeypatch, **{name: "14.2.1"})
    check_platform()


@pytest.mark.parametrize("versions", [
    {}, {"cupy_cuda13x": "14.3.0"}, {"cupy_cuda12x": "13.6.0"}, {"cupy": "14.2.0"},
    {"cupy_cuda12x": "14.2.0", "cupy_cuda13x": "14.2.0"},
])  # fmt: skip
def test_other_cupy(monkeypatch, versions):
    installed(monkeypatch, **versions)
    with pytest.raises(UnsupportedError, match=r"supports CuPy 14.2.*installed is"):
        check_platform()


def test_other_platform(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match=r"this is CPython .* on Linux aarch64"):
        check_platform()


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"g\+\+ is not installed"):
        check_platform()
