"""Time a PyTorch flow: a training step, a density pass and, if asked, sampling."""

import torch
from timing import median_ms, once_ms, report


def time_flow(system, log_prob, parameters, x, steps, sample=None, count=0):
    """sample(n) draws n samples; count of them are timed (0: none)."""
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = -log_prob(x).mean()
        loss.backward()
        optimizer.step()

    result = {
        "parameters": sum(p.numel() for p in parameters),
        "step_ms": median_ms(step, steps),
    }
    with torch.no_grad():
        result["density_ms"] = median_ms(lambda: log_prob(x), steps)
        if count:
            result[f"sample_{count}_ms"] = once_ms(lambda: sample(count))
    report(system, **result)
