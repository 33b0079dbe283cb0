"""Time a PyTorch flow: a training step, a density pass and, if asked, sampling."""

import torch
from timing import median_ms, once_ms, report


def training_step(log_prob, parameters, x):
    """A function that makes one step of Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = -log_prob(x).mean()
        loss.backward()
        optimizer.step()

    return step


def time_flow(system, log_prob, parameters, x, steps, sample=None, count=0, draws=1):
    """sample(n) draws n samples; count of them are timed (0: none), once or as a median."""
    parameters = list(parameters)
    result = {
        "parameters": sum(p.numel() for p in parameters),
        "step_ms": median_ms(training_step(log_prob, parameters, x), steps),
    }
    with torch.no_grad():
        result["density_ms"] = median_ms(lambda: log_prob(x), steps)
        if count:
            time = once_ms if draws == 1 else lambda call: median_ms(call, draws)
            result[f"sample_{count}_ms"] = time(lambda: sample(count))
    report(system, **result)
