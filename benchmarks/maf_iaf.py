"""Time of density and of sampling against the number of features, for MAF and IAF.

    NPFLOW_THREADS=1 python benchmarks/maf_iaf.py --out runs/maf_iaf

The literature's table of the two (arXiv:1705.07057, section 3.2) says which of the operations takes
D passes through the network. npflow takes one for each, so the passes are timed beside it: a loop
of D, as other libraries run it for MAF's samples and IAF's densities. The flows have one layer; one
of n layers takes n times as long in every column.

Each operation runs in turn with the others, and medians are taken over the rounds. The loop is left
out where it would take more than --limit seconds a call. Writes maf_iaf.json and maf_iaf.png and
prints a table.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

import npflow
from npflow.bijections import Inverse, MaskedAutoregressive
from npflow.distributions import StandardNormal
from npflow.elementwise import Affine
from npflow.networks import MADE

ONE_PASS = {
    "maf_density": "MAF density",
    "maf_sample": "MAF sampling",
    "iaf_density": "IAF density",
    "iaf_sample": "IAF sampling",
}
LOOP = {"loop": "MAF sampling and IAF density in D passes"}
SECONDS = 0.05  # a fast call is repeated for so long within a round


@dataclass
class Settings:
    features: tuple[int, ...] = (2, 8, 32, 128, 512, 784)
    hidden: int = 512
    """Units of each of the two hidden layers."""
    batch: int = 100
    rounds: int = 7
    limit: float = 10.0
    out: Path = Path("runs/maf_iaf")


def main(settings: Settings) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    records = []
    heads = ["D", *(f"{n}, ms" for n in (ONE_PASS | LOOP).values()), "D passes / MAF sampling"]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for features in settings.features:
        records.append(measure(features, settings))
        print(row(records[-1]), flush=True)
    results = {"settings": asdict(settings) | {"out": str(settings.out)}, "records": records}
    (settings.out / "maf_iaf.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(records, settings.out / "maf_iaf.png")


def measure(features: int, settings: Settings) -> dict[str, Any]:
    """Median milliseconds a batch of each operation."""
    maf, iaf = flow(features, settings.hidden), flow(features, settings.hidden, inverse=True)
    layer = maf.bijection.layers[0]
    x = maf.sample(settings.batch, seed=0)
    z = maf.to_latent(x)
    calls: dict[str, Callable[[], Any]] = {
        "maf_density": lambda: maf.log_prob(x),
        "maf_sample": lambda: maf.sample(settings.batch),
        "iaf_density": lambda: iaf.log_prob(z),
        "iaf_sample": lambda: iaf.sample(settings.batch),
    }
    record: dict[str, Any] = {"features": features}
    if features * seconds(calls["maf_density"]) <= settings.limit:
        calls["loop"] = lambda: layer.inverse_by_passes(z)
        # Both must find the same x, or one of the times is of another thing.
        error = np.abs(layer.inverse_by_passes(z) - layer.inverse(z)[0]).max()
        record["largest_difference"] = float(error)
    for call in calls.values():
        call()
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(settings.rounds)]
    medians = {name: 1e3 * statistics.median(r[name] for r in rounds) for name in calls}
    return record | {f"{name}_ms": value for name, value in medians.items()}


def flow(features: int, hidden: int, inverse: bool = False) -> npflow.Flow:
    """One layer whose parameters are not zero: their weights start at random."""
    network = MADE(features, (hidden, hidden), parameters_per_feature=2, zero_last=False)
    layer = MaskedAutoregressive(Affine(features), network)
    return npflow.Flow(
        StandardNormal(features), Inverse(layer) if inverse else layer, backend="numpy"
    )


def seconds(call: Callable[[], Any]) -> float:
    """Of one call: the mean of as many as fit into SECONDS, at least one."""
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        if (taken := time.perf_counter() - start) >= SECONDS:
            return taken / calls


def row(record: dict[str, Any]) -> str:
    names = [*ONE_PASS, *LOOP]
    cells = [f"{record[f'{n}_ms']:.3g}" if f"{n}_ms" in record else "left out" for n in names]
    ratio = record.get("loop_ms", math.nan) / record["maf_sample_ms"]
    cells.append(f"{ratio:.1f}" if math.isfinite(ratio) else "")
    return f"| {record['features']} | {' | '.join(cells)} |"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="features D", ylabel="ms a batch, one layer"
    )
    for name, label in (ONE_PASS | LOOP).items():
        shown = [r for r in records if f"{name}_ms" in r]
        style = "s--" if name in LOOP else "o-" if name.startswith("maf") else "^-"
        axes.plot(
            [r["features"] for r in shown], [r[f"{name}_ms"] for r in shown], style, ms=4,
            label=label,
        )  # fmt: skip
    features = [r["features"] for r in records]
    axes.set_xticks(features, [str(n) for n in features])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
