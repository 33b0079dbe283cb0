"""How exact the gradients, log-dets and inverses of a RealNVP are: the figures that README quotes.

python benchmarks/exactness.py
"""

from __future__ import annotations

import numpy as np

import npflow
from npflow import testing


def main() -> None:
    rng = np.random.default_rng(0)
    flow = npflow.models.realnvp(
        6, 8, (32, 32), activation="tanh", backend="numpy", dtype="float64"
    )
    testing.randomize(flow.params, seed=1)
    x = rng.normal(size=(5, 6))
    gradient = testing.check_flow_gradients(flow, x).error
    log_det = testing.check_log_det(flow.bijection, x)
    print(
        f"8 couplings, float64: gradient of the loss against differences, relative {gradient:.1e}"
    )
    print(f"8 couplings, float64: log-det against slogdet of the Jacobian {log_det:.1e}")
    for dtype in ("float64", "float32"):
        print(f"32 couplings, {dtype}: |x -> z -> x - x| {round_trip(dtype, rng):.1e}")


def round_trip(dtype: str, rng: np.random.Generator) -> float:
    """The largest error of an inversion with N(0, 0.3^2 / n_in) added to every weight."""
    flow = npflow.models.realnvp(784, 32, (64, 64), backend="numpy", dtype=dtype)
    for name, slot in flow.params.table.items():
        if len(slot.shape) == 2:
            noise = rng.normal(size=slot.shape) * 0.3 / np.sqrt(slot.shape[0])
            flow.params.value(name)[...] += noise.astype(dtype)
    x = rng.normal(size=(50, 784)).astype(dtype)
    return float(np.abs(flow.from_latent(flow.to_latent(x)) - x).max())


if __name__ == "__main__":
    main()
