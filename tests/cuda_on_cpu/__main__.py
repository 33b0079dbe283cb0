"""Runs a program with CuPy on the stand-in device: pytest ..., script.py ..., or -m module ...

    python tests/cuda_on_cpu [options] -- pytest -m gpu
    python tests/cuda_on_cpu [options] -- experiments/x.py --backend cupy

Starts Python again, in this process, with the stand-in device in its environment; processes that it
starts inherit it.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
if not __package__:  # the folder itself is run: what is importable is its parent
    sys.path[0] = str(PACKAGE.parent)

from cuda_on_cpu.settings import PREFIX, Settings  # noqa: E402
from cuda_on_cpu.supported import UnsupportedError, check_platform  # noqa: E402


def environment(options: argparse.Namespace) -> dict[str, str]:
    """This process's environment with the choices, the package and its sitecustomize added."""
    chosen = dict(os.environ)
    for item in fields(Settings):
        value = getattr(options, item.name)
        if value is not None:
            if item.name in ("cache", "capture", "report"):
                value = os.path.abspath(value)  # child processes may run in other folders
            chosen[PREFIX + item.name.upper()] = str(
                int(value) if isinstance(value, bool) else value
            )
    chosen["CUDA_ON_CPU"] = "1"
    chosen["CUDA_ON_CPU_MAIN"] = str(os.getpid())
    folders = [str(PACKAGE / "startup"), str(PACKAGE.parent)]
    inherited = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    chosen["PYTHONPATH"] = os.pathsep.join(
        folders + [folder for folder in inherited if folder not in folders]
    )
    plugins = [name for name in chosen.get("PYTEST_PLUGINS", "").split(",") if name]
    chosen["PYTEST_PLUGINS"] = ",".join(dict.fromkeys([*plugins, "cuda_on_cpu.pytest_plugin"]))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tests/cuda_on_cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for item in fields(Settings):
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if isinstance(item.default, bool)
            else {"type": type(item.default), "metavar": item.name.upper()}
        )
        default = f" [{item.default}]" if item.default != "" else ""
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            default=None,
            help=item.metadata["help"] + default,
            **kind,
        )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="pytest ..., a script and its arguments, or -m module ...",
    )
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    if command[0] in ("pytest", "py.test"):
        command = ["-m", "pytest", *command[1:]]
    elif command[0] in ("python", "python3"):
        command = command[1:]
    chosen = environment(options)
    os.environ.update(chosen)
    try:
        check_platform()
        Settings.from_environment()  # a wrong choice fails here, not in the middle of a run
    except (UnsupportedError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *command], chosen)


if __name__ == "__main__":
    main()
