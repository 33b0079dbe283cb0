"""npflow beside its peers, in turn in one run: medians over rounds and ratios.

    python benchmarks/against_peers.py --torch-python .venv-torch/bin/python \\
        --jax-python .venv-jax/bin/python --features 784 --hidden 1024 --couplings 5 --batch 128

torch and JAX pin different packages, so each has an interpreter of its own (extras `peers` and
`peers-jax`). Timings of a shared machine swing: run nothing beside it, and quote the ratios. What
each process measured goes to standard error, the tables to standard output.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

HERE = Path(__file__).parent
Medians = dict[str, dict[str, float]]  # system -> what was measured -> its median over the rounds


@dataclass
class Settings:
    model: Literal["coupling", "maf", "glow"] = "coupling"
    """RealNVP; or MAF or Glow, whose sampling is timed, too."""
    features: int = 784
    """Of glow: 784, which are 28 x 28 images."""
    hidden: int = 1024
    """The width of each of a network's two hidden layers; of glow, in channels."""
    layers: Annotated[int, tyro.conf.arg(aliases=["--couplings"])] = 5
    """Of glow: steps of flow on each of the two scales."""
    batch: int = 128
    steps: int = 20
    """Steps timed in each process."""
    rounds: int = 3
    samples: tuple[int, ...] = (1, 100, 1000)
    """maf: how many samples npflow draws, each beside a dense density pass of as many rows."""
    peer_samples: int = 100
    """maf: how many samples to draw by `features` passes, as the peers do (0: none)."""
    peer_sample_rounds: int = 1
    """maf: in how many of the rounds, since these take long."""
    torch_python: Path | None = None
    """An interpreter with the extra `peers`."""
    jax_python: Path | None = None
    """An interpreter with the extra `peers-jax`; not for glow, which has no peer there."""


def main(settings: Settings) -> None:
    if settings.model == "glow" and (settings.features != 784 or settings.jax_python):
        sys.exit("glow is timed on 784 features and without JAX: leave these two options out")
    medians = measure(settings)
    sizes = f"H={settings.hidden} K={settings.layers} B={settings.batch}"
    print(f"{settings.model} D={settings.features} {sizes}")
    print_systems(medians)
    if settings.model == "maf":
        print_sampling(medians, settings.samples)
        if settings.peer_samples:
            print_peer_sampling(medians, settings.peer_samples)
    if settings.model == "glow":
        print_peer_sampling(medians, settings.batch)


def measure(settings: Settings) -> Medians:
    """Every system in turn, round after round."""
    model = settings.model
    scripts = {HERE / f"{model}_npflow.py": Path(sys.executable)}
    if settings.torch_python:
        scripts[HERE / "peers" / f"{model}_torch.py"] = settings.torch_python
    if settings.jax_python:
        scripts[HERE / "peers" / f"{model}_jax.py"] = settings.jax_python
    sizes = (settings.features, settings.hidden, settings.layers, settings.batch, settings.steps)
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(settings.rounds):
        loop = settings.peer_samples if turn < settings.peer_sample_rounds else 0
        for script, python in scripts.items():
            arguments: list[int | str] = [*sizes]
            if model == "glow":
                arguments = ["time", *sizes[1:]]
            if model == "maf":
                arguments.append(loop)
                if script.parent == HERE:
                    arguments += sorted({*settings.samples, loop} - {0})
            for record in run(python, script, arguments):
                system = record.pop("system")
                for name, value in record.items():
                    results[system][name].append(value)
    return {
        system: {name: statistics.median(values) for name, values in numbers.items()}
        for system, numbers in results.items()
    }


def run(python: Path, script: Path, arguments: Sequence[int | str]) -> list[dict]:
    command = [str(python), str(script), *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [line for line in output.splitlines() if line.startswith("{")]
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    return [json.loads(line) for line in lines]


def print_systems(medians: Medians) -> None:
    """A training step and a density pass; the ratio is npflow's time to the system's."""
    print(f"{'system':22} {'step ms':>9} {'npflow/it':>10} {'density ms':>11} {'npflow/it':>10}")
    ours = medians["npflow"]
    for system, numbers in medians.items():
        if "step_ms" in numbers:
            step, density = numbers["step_ms"], numbers["density_ms"]
            ratios = ours["step_ms"] / step, ours["density_ms"] / density
            print(f"{system:22} {step:9.3f} {ratios[0]:10.2f} {density:11.3f} {ratios[1]:10.2f}")


def print_sampling(medians: Medians, counts: tuple[int, ...]) -> None:
    """Sampling by npflow beside density passes of as many rows, masked and dense."""
    ours, dense = medians["npflow"], medians["npflow, dense"]
    print(f"\n{'samples':>8} {'ms':>10} {'density ms':>11} {'dense ms':>10} {'ms/dense':>9}")
    for n in counts:
        time, unit = ours[f"sample_{n}_ms"], dense[f"density_{n}_ms"]
        print(f"{n:8} {time:10.3f} {ours[f'density_{n}_ms']:11.3f} {unit:10.3f} {time / unit:9.2f}")


def print_peer_sampling(medians: Medians, count: int) -> None:
    """Sampling by every system; the ratio is how many times npflow is faster."""
    name = f"sample_{count}_ms"
    print(f"\n{'system':22} {f'{count} samples ms':>18} {'it/npflow':>10}")
    for system, numbers in medians.items():
        if name in numbers:
            ratio = numbers[name] / medians["npflow"][name]
            print(f"{system:22} {numbers[name]:18.3f} {ratio:10.1f}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
