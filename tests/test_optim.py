"""Adam, schedules and averages against plain versions, and whole training steps against PyTorch."""

import math

import numpy as np
import pytest

from npflow import optim
from npflow.bijections import Logit, Scale
from npflow.flow import Flow
from npflow.models import nice, realnvp

RNG = np.random.default_rng(7)


@pytest.fixture(params=["reference", "numpy"])
def backend(request):
    return request.param


def small_flow(backend, dtype="float64"):
    return realnvp(5, couplings=2, hidden=(7,), backend=backend, dtype=dtype)


def plain_adam(tensors, gradients, rate, beta1, beta2, epsilon, weight_decay, max_norm):
    """Kingma and Ba's algorithm 1, tensor by tensor; yields the tensors after every step."""
    m = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    v = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    for t, grads in enumerate(gradients, start=1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        clip = min(1.0, max_norm / norm)
        for name, tensor in tensors.items():
            g = clip * grads[name]
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            m_hat, v_hat = m[name] / (1 - beta1**t), v[name] / (1 - beta2**t)
            decay = rate(t - 1) * weight_decay * tensor
            tensor -= rate(t - 1) * m_hat / (np.sqrt(v_hat) + epsilon) + decay
        yield tensors


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [None, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
def test_adam_against_a_plain_one(backend, dtype, tolerance, max_norm, weight_decay):
    params = small_flow(backend, dtype).params
    schedule = optim.warm_up(5, optim.cosine(20))
    adam = optim.Adam(params, 0.05, 0.8, 0.95, 1e-6, weight_decay, max_norm)
    start = params.values.copy()
    tensors = {name: a.astype(np.float64) for name, a in params.to_numpy().items()}
    # Norms below and above the bound.
    gradients = [
        {name: RNG.normal(size=a.shape) * RNG.choice([0.01, 1.0]) for name, a in tensors.items()}
        for _ in range(20)
    ]
    expected = plain_adam(
        tensors, gradients, lambda step: 0.05 * schedule(step), 0.8, 0.95, 1e-6, weight_decay,
        math.inf if max_norm is None else max_norm,
    )  # fmt: skip
    for step, tensors in enumerate(expected):
        for name, gradient in gradients[step].items():
            params.grad(name)[...] = gradient
        adam.step(schedule(step))
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params.value(name), tensor, rtol=0, atol=tolerance)
    assert adam.steps == 20
    assert np.median(np.abs(params.values - start)) > 1e-2


def test_clipping_scales_the_whole_gradient(backend):
    """Adam's first moment after one step is (1 - beta1) times the gradient that it used."""
    params = small_flow(backend).params
    for max_norm, expected in ((0.5, 0.5), (100.0, 2.0), (None, 2.0)):
        params.grads[...] = RNG.normal(size=params.count)
        params.grads *= 2.0 / np.linalg.norm(params.grads)
        adam = optim.Adam(params, max_norm=max_norm)
        adam.step()
        assert np.linalg.norm(adam.m) / 0.1 == pytest.approx(expected, rel=1e-12)
        cosine = adam.m @ params.grads / np.linalg.norm(adam.m) / 2.0
        assert cosine == pytest.approx(1.0, abs=1e-12)


def test_clipping_a_zero_gradient_is_harmless(backend):
    params = small_flow(backend).params
    before = params.values.copy()
    optim.Adam(params, max_norm=1.0).step()
    np.testing.assert_array_equal(params.values, before)


def test_weight_decay_is_decoupled(backend):
    """Without a gradient, only the decay acts, at the scheduled rate."""
    params = small_flow(backend).params
    params.values[...] = RNG.normal(size=params.count)
    before = params.values.copy()
    optim.Adam(params, 0.1, weight_decay=0.5).step(0.25)
    np.testing.assert_allclose(params.values, before * (1 - 0.1 * 0.25 * 0.5), rtol=1e-14)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (optim.constant(), {0: 1.0, 999: 1.0}),
        (optim.exponential(0.5, 10), {0: 1.0, 9: 1.0, 10: 0.5, 19: 0.5, 35: 0.125}),
        (optim.cosine(100), {0: 1.0, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0.0, 150: 0.0}),
        (optim.cosine(100, final=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (optim.warm_up(4, optim.constant()), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0}),
        (optim.warm_up(0, optim.constant()), {0: 1.0}),
        (optim.warm_up(4, optim.exponential(0.5, 2)), {0: 0.25, 2: 0.375, 6: 0.125}),
    ],
)
def test_schedules(schedule, expected):
    for step, factor in expected.items():
        assert schedule(step) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 1e-6)])
def test_the_average_of_weights(backend, dtype, tolerance):
    params = small_flow(backend, dtype).params
    average = optim.WeightAverage(params, 0.5)
    expected = params.values.astype(np.float64)
    for step in range(1, 13):
        params.values[...] = RNG.normal(size=params.count)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * params.values
    assert (1 + 1) / (10 + 1) < 0.5 < (1 + 12) / (10 + 12)  # both branches were taken
    np.testing.assert_allclose(average.average, expected, rtol=0, atol=tolerance)


def test_swapping_is_its_own_inverse_and_keeps_the_views(backend):
    flow = small_flow(backend)
    params = flow.params
    average = optim.WeightAverage(params, 0.5)
    params.values += 1
    current, averaged = params.values.copy(), average.average.copy()
    weight = flow.bijection.layers[0].conditioner.weights[0]
    for values, stored in ((averaged, current), (current, averaged)):
        average.swap()
        np.testing.assert_array_equal(params.values, values)
        np.testing.assert_array_equal(average.average, stored)
        assert np.shares_memory(weight.value, params.values)


# An independent engine


def torch_parameters(torch, flow):
    return {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=name in flow.params.table)
        for name, array in flow.params.to_numpy().items()
    }


def torch_nll(torch, flow, parameters, x):
    """The training loss, written with PyTorch's own operations; nothing of npflow's arithmetic."""
    log_det = torch.zeros(len(x), dtype=torch.float64)
    for k, layer in enumerate(flow.bijection.layers):
        p = {
            name.removeprefix(f"bijection.layers.{k}."): tensor
            for name, tensor in parameters.items()
            if name.startswith(f"bijection.layers.{k}.")
        }
        kind = type(layer).__name__
        if kind == "Scale":
            x, log_det = x * layer.factor, log_det + x.shape[1] * math.log(layer.factor)
        elif kind == "Logit":
            slope = (1 - 2 * layer.lam) / layer.levels
            probability = layer.lam + slope * x
            x = torch.logit(probability)
            log_det = log_det + (
                math.log(slope) - torch.log(probability) - torch.log1p(-probability)
            ).sum(1)
        elif kind == "BatchNorm":
            var = x.var(0, correction=0) + layer.epsilon
            x = torch.exp(p["log_gamma"]) * (x - x.mean(0)) / torch.sqrt(var) + p["beta"]
            log_det = log_det + (p["log_gamma"] - 0.5 * torch.log(var)).sum()
        elif kind == "Diagonal":
            x, log_det = x * torch.exp(p["log_scale"]), log_det + p["log_scale"].sum()
        else:
            kept = list(layer.kept)
            others = [j for j in range(layer.features) if j not in kept]
            h, depth = x[:, kept], len(layer.conditioner.weights)
            for i in range(depth):
                weight, bias = p[f"conditioner.weights.{i}"], p[f"conditioner.biases.{i}"]
                h = torch.nn.functional.linear(h, weight.T, bias)
                h = torch.relu(h) if i + 1 < depth else h
            z = torch.empty_like(x)
            z[:, kept] = x[:, kept]
            if type(layer.map).__name__ == "Affine":
                shift, raw = h.chunk(2, dim=1)
                log_scale = p["map.bounds"] * torch.tanh(raw)
                z[:, others] = x[:, others] * torch.exp(log_scale) + shift
                log_det = log_det + log_scale.sum(1)
            else:
                z[:, others] = x[:, others] + h
            x = z
    if type(flow.base).__name__ == "Logistic":
        softplus = torch.nn.functional.softplus
        log_prob = -(softplus(x) + softplus(-x)).sum(1)
    else:
        log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    return -(log_prob + log_det).mean()


def realnvp_on_pixels(backend) -> Flow:
    return realnvp(
        7, couplings=4, hidden=(16, 16), masks="parity", bound=0.8, batch_norm=True,
        logit=Logit(1e-3), backend=backend, dtype="float64", seed=3,
    )  # fmt: skip


def nice_on_pixels(backend) -> Flow:
    return nice(
        7, couplings=4, hidden=(16, 16), scale=Scale(1 / 256), backend=backend, dtype="float64",
        seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("build", [realnvp_on_pixels, nice_on_pixels])
def test_twenty_steps_beside_pytorch(build, backend):
    """The same weights and batches: the same losses, gradients and weights at each of 20 steps.

    Gradients are compared where the two engines' parameters are identical (PyTorch's are copied
    over for it), losses and weights along two runs that never meet.
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    flow, twin = build(backend), build(backend)
    flow.params.values += rng.normal(size=flow.params.count) * 0.2  # zeros would hide errors
    parameters = torch_parameters(torch, flow)
    trained = [parameters[name] for name in flow.params.table]
    adam = optim.Adam(flow.params, 1e-2)
    torch_adam = torch.optim.Adam(trained, lr=1e-2, eps=1e-8)
    first = None
    for _ in range(20):
        x = rng.uniform(0, 256, (32, 7))
        torch_adam.zero_grad()
        expected = torch_nll(torch, flow, parameters, torch.tensor(x))
        expected.backward()
        for name, tensor in zip(flow.params.table, trained, strict=True):
            twin.params.value(name)[...] = tensor.detach().numpy()
        twin.nll_and_grad(x)
        for name, tensor in zip(flow.params.table, trained, strict=True):
            by_autograd = tensor.grad.numpy()
            error = np.abs(twin.params.grad(name) - by_autograd).max()
            assert error <= 1e-10 * np.abs(by_autograd).max(), name
        loss = flow.nll_and_grad(x)
        assert loss == pytest.approx(expected.item(), rel=1e-10)
        first = loss if first is None else first
        adam.step()
        torch_adam.step()
    for name, tensor in zip(flow.params.table, trained, strict=True):
        by_torch = tensor.detach().numpy()
        np.testing.assert_allclose(flow.params.value(name), by_torch, rtol=0, atol=1e-9)
    assert abs(loss - first) > 0.1
