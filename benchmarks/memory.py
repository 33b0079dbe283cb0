"""Peak memory of one gradient, and its time, against depth for the three memory schedules.

    python benchmarks/memory.py --out runs/memory

Memory is what NumPy allocates within `loss_and_grad` above what was there before (parameters and
their gradients are allocated with the flow). Writes memory.json and memory.png.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

import npflow


@dataclass
class Settings:
    features: int = 784
    hidden: int = 512
    batch: int = 128
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    repetitions: int = 5
    out: Path = Path("runs/memory")


def main(settings: Settings) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(size=(settings.batch, settings.features))
    x = x.astype(np.float32)
    records = []
    for depth in settings.depths:
        flow = npflow.models.realnvp(
            settings.features, depth, (settings.hidden,) * 2, backend="numpy"
        )
        for schedule in ("store", "recompute", "invert"):
            flow.loss_and_grad(x, memory=schedule)
            record = {"couplings": depth, "schedule": schedule}
            record["peak_mib"] = peak_mib(flow, x, schedule)
            record["ms"] = median_ms(flow, x, schedule, settings.repetitions)
            records.append(record)
            print(json.dumps(record), flush=True)
    (settings.out / "memory.json").write_text(json.dumps(records, indent=1) + "\n")
    draw(records, settings.out / "memory.png")


def peak_mib(flow: npflow.Flow, x: np.ndarray, schedule: str) -> float:
    tracemalloc.start()
    flow.loss_and_grad(x, memory=schedule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def median_ms(flow: npflow.Flow, x: np.ndarray, schedule: str, repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        flow.loss_and_grad(x, memory=schedule)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def draw(records: list[dict], path: Path) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("peak_mib", "ms"), ("peak MiB", "ms a gradient"), strict=True
    ):
        for schedule in ("store", "recompute", "invert"):
            mine = [r for r in records if r["schedule"] == schedule]
            axes.plot([r["couplings"] for r in mine], [r[key] for r in mine], "o-", label=schedule)
        axes.set(xlabel="couplings", ylabel=label, ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
