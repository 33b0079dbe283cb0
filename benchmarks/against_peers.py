"""npflow beside its peers, in turn in one run: medians over rounds and ratios.

    python benchmarks/against_peers.py --torch-python .venv-torch/bin/python \\
        --jax-python .venv-jax/bin/python --features 784 --hidden 1024 --couplings 5 --batch 128

torch and JAX pin different packages, so each has an interpreter of its own (extras `peers` and
`peers-jax`). Timings of a shared machine swing: run nothing beside it, and quote the ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).parent


@dataclass
class Settings:
    features: int = 784
    hidden: int = 1024
    couplings: int = 5
    batch: int = 128
    steps: int = 20
    """Steps timed in each process."""
    rounds: int = 3
    torch_python: Path | None = None
    """An interpreter with the extra `peers`."""
    jax_python: Path | None = None
    """An interpreter with the extra `peers-jax`."""


def main(settings: Settings) -> None:
    scripts = {HERE / "coupling_npflow.py": Path(sys.executable)}
    if settings.torch_python:
        scripts[HERE / "peers" / "coupling_torch.py"] = settings.torch_python
    if settings.jax_python:
        scripts[HERE / "peers" / "coupling_jax.py"] = settings.jax_python
    sizes = [settings.features, settings.hidden, settings.couplings, settings.batch, settings.steps]
    results: dict[str, list[dict]] = {}
    for _ in range(settings.rounds):
        for script, python in scripts.items():
            command = [str(python), str(script), *map(str, sizes)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for line in output.splitlines():
                if line.startswith("{"):
                    record = json.loads(line)
                    results.setdefault(record["system"], []).append(record)
    print(" ".join(f"{k}={v}" for k, v in zip(("D", "H", "K", "B"), sizes, strict=False)))
    print(f"{'system':22} {'step ms':>9} {'npflow/it':>10} {'density ms':>11} {'npflow/it':>10}")
    ours = {key: median(results["npflow"], key) for key in ("step_ms", "density_ms")}
    for system, records in results.items():
        step, density = median(records, "step_ms"), median(records, "density_ms")
        ratios = ours["step_ms"] / step, ours["density_ms"] / density
        print(f"{system:22} {step:9.3f} {ratios[0]:10.2f} {density:11.3f} {ratios[1]:10.2f}")


def median(records: list[dict], key: str) -> float:
    return statistics.median(record[key] for record in records)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
