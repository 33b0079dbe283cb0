"""Peak memory of a training step of Glow against depth, beside normflows.

    python benchmarks/memory_glow.py --torch-python .venv-torch/bin/python --out runs/memory_glow

28 x 28 images on two scales; the depth K is the steps of flow on each. Every measurement has a
process of its own; medians are over several. Counted is the resident memory at its peak, above what
was there before the flow was made ("peak") and above what stays between two steps ("step"): without
parameters, gradients and Adam's moments, which grow with K under any schedule.
peers/peak_memory.py says how. The ratios are of the latter. Writes memory_glow.json and
memory_glow.png and prints a table.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from against_peers import run
from matplotlib.figure import Figure

HERE = Path(__file__).parent
MEASURED = "peak_mib", "step_mib"


@dataclass
class Settings:
    width: int = 64
    batch: int = 64
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    reference: int = 8
    """The depth that ratios are taken to, one of depths."""
    repetitions: int = 3
    """Steps in each process."""
    rounds: int = 3
    """Processes of each system and depth; medians are taken over them."""
    torch_python: Path | None = None
    """An interpreter with the extra `peers`."""
    out: Path = Path("runs/memory_glow")


def main(settings: Settings) -> None:
    if settings.reference not in settings.depths:
        sys.exit(f"--reference {settings.reference} is not one of --depths")
    settings.out.mkdir(parents=True, exist_ok=True)
    records = [record for depth in settings.depths for record in measure(depth, settings)]
    (settings.out / "memory_glow.json").write_text(json.dumps(records, indent=1) + "\n")
    print_table(records, settings.reference)
    draw(records, settings.out / "memory_glow.png")


def measure(depth: int, settings: Settings) -> list[dict[str, Any]]:
    """A record of every system at this depth."""
    sizes = "memory", settings.width, depth, settings.batch, settings.repetitions
    ours, theirs = HERE / "glow_npflow.py", HERE / "peers" / "glow_torch.py"
    commands: list[Any] = [
        (Path(sys.executable), ours, [*sizes, schedule])
        for schedule in ("store", "recompute", "invert")
    ]
    if settings.torch_python:
        commands.append((settings.torch_python, theirs, sizes))
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(settings.rounds):
        for command in commands:
            for record in run(*command):
                record.pop("ms")  # memory may be measured beside other work, time may not
                found.setdefault(record["system"], []).append(record)
    return [
        rounds[0] | {name: statistics.median(r[name] for r in rounds) for name in MEASURED}
        for rounds in found.values()
    ]


def by_system(records: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """system -> depth -> record"""
    systems: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        systems.setdefault(record["system"], {})[record["depth"]] = record
    return systems


def print_table(records: list[dict[str, Any]], reference: int) -> None:
    ratio = f"/ K={reference}"
    print(f"{'system':18} {'K':>4} {'peak MiB':>9} {'step MiB':>9} {ratio:>8}")
    for system, depths in by_system(records).items():
        unit = depths[reference]["step_mib"]
        for depth, r in depths.items():
            peak, step = r["peak_mib"], r["step_mib"]
            print(f"{system:18} {depth:4} {peak:9.1f} {step:9.1f} {step / unit:8.2f}")


def draw(records: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = {
        "peak_mib": "peak MiB",
        "step_mib": "peak MiB without parameters,\ngradients and moments",
    }
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="steps of flow a scale", ylabel=label)
        for system, depths in by_system(records).items():
            style = "o-" if system.startswith("npflow") else "s--"
            axes.plot(list(depths), [r[key] for r in depths.values()], style, ms=4, label=system)
        axes.set_xticks(list(depths), [str(n) for n in depths])
        axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
