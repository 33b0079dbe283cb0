"""The checks themselves: on maps whose derivatives are known, and on layers that are wrong."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from cases import affine

from npflow import models, testing
from npflow.bijections import Bijection, Diagonal, half
from npflow.errors import CheckError, DtypeError
from npflow.params import Parameter, constant

X = np.random.default_rng(0).normal(size=(3, 4))


@dataclass(eq=False)
class Cubic(Bijection):
    """z = x + a x^3 for every element: a layer as a user would write it."""

    features: int

    def __post_init__(self):
        self.a = Parameter((self.features,), constant(1.0))

    def forward(self, x, context=None):
        a = self.a.value
        z = x + a * x**3
        return z, np.log(1 + 3 * a * x**2).sum(axis=1), (x,)

    def inverse(self, z, context=None):
        a, x = self.a.value, z.copy()
        for _ in range(200):  # Newton
            x -= (x + a * x**3 - z) / (1 + 3 * a * x**2)
        return x, -np.log(1 + 3 * a * x**2).sum(axis=1), (x,)

    def backward(self, cache, dz, dlog_det):
        (x,), a = cache, self.a.value
        slope = 1 + 3 * a * x**2
        dlog = dlog_det[:, None] / slope
        self.a.grad += (dz * x**3 + dlog * 3 * x**2).sum(axis=0)
        return dz * slope + dlog * 6 * a * x, None

    def inverse_backward(self, cache, dx, dlog_det):
        # x = f^-1(z): of its gradient g at x, dz = g / slope and da = -(g / slope) x^3.
        (x,), a = cache, self.a.value
        slope = 1 + 3 * a * x**2
        dlog = -dlog_det[:, None] / slope
        dz = (dx + dlog * 6 * a * x) / slope
        self.a.grad += (-dz * x**3 + dlog * 3 * x**2).sum(axis=0)
        return dz, None


def cubic() -> Cubic:
    layer = Cubic(4)
    testing.prepare(layer, scale=0.1)
    return layer


def test_jacobian_of_a_known_map():
    def function(x):
        return np.stack([np.sin(x[:, 0]) * x[:, 1], np.exp(x[:, 2]), x[:, 3] ** 2], axis=1)

    matrix = testing.jacobian(function, X)
    assert matrix.shape == (3, 3, 4)
    expected = np.zeros((3, 3, 4))
    expected[:, 0, 0], expected[:, 0, 1] = np.cos(X[:, 0]) * X[:, 1], np.sin(X[:, 0])
    expected[:, 1, 2], expected[:, 2, 3] = np.exp(X[:, 2]), 2 * X[:, 3]
    np.testing.assert_allclose(matrix, expected, atol=1e-11)


def test_jacobian_flattens_images():
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 1))
    np.testing.assert_allclose(
        testing.jacobian(lambda x: x.mean(axis=(1, 2, 3)), x), np.full((2, 1, 4), 0.25)
    )


def test_a_users_layer_passes():
    layer = cubic()
    assert testing.check_inverse(layer, X) < 1e-14
    assert testing.check_log_det(layer, X) < 1e-10
    reports = testing.check_gradients(layer, X)
    assert {r.direction for r in reports} == {"forward", "inverse"}
    assert {r.tensor for r in reports} == {"x", "z", "a"}
    assert len({r.cotangents for r in reports}) == 5  # dz or dx and dlog_det, each alone
    assert all(r.error < 1e-8 for r in reports)
    assert all(1.9 < r.order < 2.1 for r in reports if r.order is not None)
    linear = [r for r in reports if r.order is None]  # z is linear in a, nothing else is
    assert {(r.direction, r.tensor, r.cotangents) for r in linear} == {("forward", "a", "dz alone")}


def test_checks_leave_parameters_gradients_and_input_as_they_were():
    layer = cubic()
    layer.a.grad[...] = 7
    value, x = layer.a.value.copy(), X.copy()
    testing.check_log_det(layer, X)
    testing.check_gradients(layer, X)
    assert (layer.a.grad == 7).all()
    np.testing.assert_array_equal(layer.a.value, value)
    np.testing.assert_array_equal(X, x)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1 + 1e-6])
def test_a_wrong_gradient_fails_and_is_named(factor, monkeypatch):
    layer = cubic()
    backward = Cubic.backward

    def wrong(self, cache, dz, dlog_det):
        dx, dcontext = backward(self, cache, dz, dlog_det)
        dx[1, 2] *= factor
        return dx, dcontext

    monkeypatch.setattr(Cubic, "backward", wrong)
    message = r"Cubic forward: gradient of x at index \(1, 2\) for dz and dlog_det: .* by hand, .*"
    with pytest.raises(CheckError, match=message):
        testing.check_gradients(layer, X)


def test_a_wrong_gradient_of_a_large_tensor_fails(monkeypatch):
    layer = affine(4, half(4), hidden=(24, 24))
    testing.prepare(layer)
    backward = type(layer.conditioner).backward

    def wrong(self, cache, dy):
        answer = backward(self, cache, dy)
        self.weights[1].grad[3, 5] += 1e-3
        return answer

    monkeypatch.setattr(type(layer.conditioner), "backward", wrong)
    with pytest.raises(CheckError, match=r"conditioner.weights.1 at random direction"):
        testing.check_gradients(layer, X)


def test_a_gradient_of_the_wrong_shape_fails(monkeypatch):
    layer = cubic()
    monkeypatch.setattr(Cubic, "backward", lambda self, cache, dz, dlog_det: (dz.sum(axis=0), None))
    message = re.escape("gradient of x has shape (4,), expected (3, 4)")
    with pytest.raises(CheckError, match=message):
        testing.check_gradients(layer, X)


def test_a_low_order_fails_even_where_the_tolerance_passes(monkeypatch):
    layer = cubic()
    backward = Cubic.backward

    def wrong(self, cache, dz, dlog_det):
        dx, dcontext = backward(self, cache, dz, dlog_det)
        return dx * (1 + 1e-3), dcontext

    monkeypatch.setattr(Cubic, "backward", wrong)
    with pytest.raises(CheckError, match="with order 0"):
        testing.check_gradients(layer, X, tolerance=1e-2)


def test_a_kink_is_seen():
    """Where the map is not differentiable no gradient is right, and the check says so."""

    @dataclass(eq=False)
    class Bent(Diagonal):
        def forward(self, x, context=None):
            z, log_det, cache = super().forward(x, context)
            return z + abs(x), log_det, cache

    layer = Bent(4)
    testing.prepare(layer)
    x = X.copy()
    x[0, 0] = 0.0
    with pytest.raises(CheckError, match="gradient of x"):
        testing.check_gradients(layer, x, directions=("forward",))


def test_a_term_missing_from_both_log_dets_is_seen_by_check_log_det_alone(monkeypatch):
    layer = cubic()
    for name in ("forward", "inverse"):
        original = getattr(Cubic, name)

        def half_log_det(self, x, context=None, original=original):
            z, log_det, cache = original(self, x, context)
            return z, log_det / 2, cache

        monkeypatch.setattr(Cubic, name, half_log_det)
    testing.check_inverse(layer, X)  # cannot see it
    with pytest.raises(CheckError, match=r"log_det against log\|det J\| by differences"):
        testing.check_log_det(layer, X)


def test_check_inverse_names_what_is_off(monkeypatch):
    layer = cubic()
    inverse = Cubic.inverse

    def replace(change):
        monkeypatch.setattr(Cubic, "inverse", lambda self, z, c=None: change(*inverse(self, z)))

    replace(lambda x, log_det, cache: (x + 1e-9, log_det, cache))
    with pytest.raises(CheckError, match=r"Cubic x = inverse\(forward\(x\)\) at index \("):
        testing.check_inverse(layer, X)
    replace(lambda x, log_det, cache: (x, -log_det, cache))
    with pytest.raises(CheckError, match="log_det of inverse"):
        testing.check_inverse(layer, X)
    replace(lambda x, log_det, cache: (x, log_det, (cache[0] + 1,)))
    with pytest.raises(CheckError, match=r"inverse's cache.0 at index"):
        testing.check_inverse(layer, X)
    replace(lambda x, log_det, cache: (x, log_det, (*cache, x)))
    with pytest.raises(CheckError, match="both directions must make the same"):
        testing.check_inverse(layer, X)
    replace(lambda x, log_det, cache: (x * np.nan, log_det, cache))
    with pytest.raises(CheckError, match="is nan"):
        testing.check_inverse(layer, X)
    replace(lambda x, log_det, cache: (x, log_det[:1], cache))
    with pytest.raises(CheckError, match=r"has shape \(1,\), expected \(3,\)"):
        testing.check_inverse(layer, X)


def test_check_inverse_sees_a_changed_input(monkeypatch):
    layer = cubic()
    forward = Cubic.forward

    def in_place(self, x, context=None):
        answer = forward(self, x.copy())
        x += 1
        return answer

    monkeypatch.setattr(Cubic, "forward", in_place)
    with pytest.raises(CheckError, match="changed its input"):
        testing.check_inverse(layer, X.copy())


def test_differences_need_float64():
    layer = Diagonal(4)
    testing.prepare(layer, dtype="float32")
    x = X.astype(np.float32)
    for check in (testing.check_log_det, testing.check_gradients):
        with pytest.raises(DtypeError, match="float64"):
            check(layer, x)
    flow = models.realnvp(4, 2, (8,), backend="reference")
    with pytest.raises(DtypeError, match="float64"):
        testing.check_flow_gradients(flow, x)


def test_check_flow_gradients_rejects_a_wrong_gradient(monkeypatch):
    flow = models.realnvp(4, 2, (8,), activation="tanh", backend="reference", dtype="float64")
    testing.randomize(flow.params)
    report = testing.check_flow_gradients(flow, X)
    assert report.error < 1e-9
    assert 1.9 < report.order < 2.1
    loss_and_grad = type(flow).loss_and_grad

    def wrong(self, *arguments):
        loss = loss_and_grad(self, *arguments)
        self.params.grads *= 1 + 1e-6
        return loss

    monkeypatch.setattr(type(flow), "loss_and_grad", wrong)
    with pytest.raises(CheckError, match="Flow training_forward: gradient of all parameters"):
        testing.check_flow_gradients(flow, X)


def test_randomize_is_the_same_for_every_dtype_and_scales_by_fan_in():
    def store(dtype):
        flow = models.realnvp(4, 2, (64, 64), backend="reference", dtype=dtype)
        before = flow.params.values.copy()
        testing.randomize(flow.params, seed=1, scale=0.5)
        return flow.params, before

    (single, _), (double, before) = store("float32"), store("float64")
    np.testing.assert_allclose(single.values, double.values, atol=1e-6)
    added = double.values - before
    slot = double.table["bijection.layers.0.conditioner.weights.1"]
    assert abs(added[slot.start : slot.stop].std() / (0.5 / 8) - 1) < 0.05
