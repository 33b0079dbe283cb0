"""What can be chosen: one environment variable for each field, CUDA_ON_CPU_ORDER and so on.

The environment carries the choices into child processes; the command line has a flag for each.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

PREFIX = "CUDA_ON_CPU_"


def _default_cache() -> str:
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cuda_on_cpu"
    )


def _setting(default: object, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    order: str = _setting(
        "forward", "order of the threads in a block: forward, reverse, random:SEED or warps"
    )
    guards: bool = _setting(
        True, "guard zones around allocations, checked when they are freed and after raw kernels"
    )
    fill: bool = _setting(True, "fill new memory with NaN (all-ones bytes)")
    check_arguments: bool = _setting(
        True, "refuse raw-kernel arguments that do not fit the kernel's parameters"
    )
    strict: bool = _setting(
        True, "in raw kernels, an exited thread that misses a barrier or warp primitive is an error"
    )
    arch: str = _setting("80", "compute capability to report, e.g. 80 for 8.0")
    memory: int = _setting(
        8 << 30, "size of the device memory in bytes; more is an out-of-memory error"
    )
    cache: str = _setting("", "folder for compiled kernels [user cache folder]")
    capture: str = _setting("", "folder that receives the source and options of every kernel used")
    report: str = _setting(
        "", "file for the JSON report at exit; child processes add their process id to the name"
    )

    @classmethod
    def from_environment(cls) -> Settings:
        values = {}
        for item in fields(cls):
            text = os.environ.get(PREFIX + item.name.upper())
            if text is None:
                continue
            if isinstance(item.default, bool):
                values[item.name] = text.lower() not in ("0", "no", "off", "false", "")
            else:
                values[item.name] = type(item.default)(text)
        settings = cls(**values)
        parse_order(settings.order)
        if not (settings.arch.isdigit() and len(settings.arch) in (2, 3)):
            raise ValueError(
                f"CUDA_ON_CPU_ARCH is {settings.arch!r}; expected digits such as 80 or 120"
            )
        return settings

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache or _default_cache())


ORDERS = {"forward": 0, "reverse": 1, "warps": 3}  # random is 2; see host_cuda_interface.hpp


@functools.cache
def parse_order(text: str) -> tuple[int, int]:
    """Order number and seed of a thread order."""
    name, _, seed = text.partition(":")
    if name in ORDERS and not seed:
        return ORDERS[name], 0
    if name == "random" and seed.isdigit():
        return 2, int(seed)
    raise ValueError(f"thread order {text!r}; expected forward, reverse, random:SEED or warps")


settings = Settings.from_environment()
