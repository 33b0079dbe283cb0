"""What a training step asks of a GPU: kernel launches, cuBLAS products, copies, allocations.

    python tests/cuda_on_cpu -- benchmarks/launches.py

Counted exactly, without a GPU; batches are small, since the counts do not depend on them. Only that
linear layers of more than 512 rows go to cuBLAS.
"""

import cuda_on_cpu
import numpy as np

from npflow import Flow, get_backend, models
from npflow.training import Trainer, TrainingOptions

backend = get_backend("cupy")
rng = np.random.default_rng(0)
points = backend.array(rng.standard_normal((16, 2)))
pixels = backend.array(rng.random((4, 784)))
images = backend.array(rng.uniform(0, 255, (2, 8, 8, 1)))
GLOW = {"shape": (8, 8, 1), "levels": 2, "steps": 2, "width": 8, "backend": backend}


def report(name: str, flow: Flow, x, memory: str = "store") -> None:
    trainer = Trainer(flow, TrainingOptions(batch_size=len(x), memory=memory), len(x))
    for _ in range(5):  # the first ones fill CuPy's pool
        with cuda_on_cpu.count() as counts:
            trainer.train_step(x, None)
    products = sum(counts["library_calls"].values())
    numbers = [counts["launches"], products, counts["h2d"] + counts["d2h"]]
    numbers.append(counts["device_mallocs"])
    print(f"{name:<44}" + "".join(f"{number:>13}" for number in numbers))


print(f"{'':<44}" + "".join(f"{h:>13}" for h in ("launches", "products", "copies", "allocations")))
report("RealNVP, 2 features, 64 x 64", models.realnvp(2, backend=backend), points)
report("RealNVP, 784 features, 64 x 64", models.realnvp(784, backend=backend), pixels)
report(
    "RealNVP, 784 features, 1024 x 1024",
    models.realnvp(784, hidden=(1024, 1024), backend=backend),
    pixels,
)
report("splines, 2 features", models.spline_coupling(2, backend=backend), points)
report("MAF, 784 features", models.maf(784, backend=backend), pixels)
report("MADE, 784 features, one layer", models.made(784, (64,), backend=backend), pixels.round())
report("Glow, 2 levels of 2 steps", models.glow(**GLOW), images)
report("the same, memory='invert'", models.glow(**GLOW), images, "invert")
report("the same, PLU", models.glow(**GLOW, form="plu"), images)
report("multi-scale RealNVP", models.realnvp_multiscale((8, 8, 1), backend=backend), images)
