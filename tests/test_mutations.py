"""Every check can fail: for each layer, errors planted in its source must be caught.

A mutation replaces a piece of the source text of a kernel or method, and names the check that has
to see it. Errors that both directions share (a factor missing from both log-dets) pass every round
trip; only `log_det` sees them.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any, NamedTuple

import pytest
from cases import CASES

from npflow import testing
from npflow.bijections import BatchNorm, Chain, Coupling, Inverse, Permutation, Scale
from npflow.elementwise import Additive, Affine
from npflow.errors import CheckError
from npflow.kernels import reference
from npflow.kernels.reference import linear
from npflow.networks import MLP


class Edit(NamedTuple):
    owner: Any  # the module or class that holds the function
    function: str
    old: str  # must occur once in its source
    new: str


class Mutation(NamedTuple):
    check: str  # a key of CHECKS
    edits: tuple[Edit, ...]


def plant(check: str, *edit: Any) -> Mutation:
    return Mutation(check, (Edit(*edit),))


CHECKS = {
    "inverse": lambda case, x, context: testing.check_inverse(case.layer, x, context),
    "log_det": lambda case, x, context: testing.check_log_det(
        case.layer, x, context, step=case.step
    ),
    "gradients": lambda case, x, context: testing.check_gradients(
        case.layer, x, context, step=case.step
    ),
    "training": lambda case, x, context: testing.check_gradients(
        case.layer, x, context, directions=("training_forward",)
    ),
}

PRODUCT = [
    plant("gradients", reference, "linear_backward", "dweight += x.T", "dweight[...] = x.T"),
    plant("gradients", reference, "linear_backward", "dbias += da", "dbias += 0 * da"),
]
NETWORK = [
    *PRODUCT,
    plant("gradients", reference, "linear_backward", "x.T @ da", "x.T @ dy"),
]
TANH = [
    *NETWORK,
    plant("gradients", linear, "_act_derivative", "(1 - y) * (1 + y)", "1 - y"),
]
RELU = [plant("gradients", linear, "_act_derivative", "(y > 0)", "(y < 0)")]
LEAKY_RELU = [plant("gradients", linear, "_act_derivative", "1, LEAKY_SLOPE", "1, 0")]
ELU = [plant("gradients", linear, "_act_derivative", "1, y + 1", "1, y")]
COUPLING = [
    plant("gradients", Coupling, "_backward", "dx_a += dz_a", "pass"),
    plant("inverse", Coupling, "inverse", "self.map.inverse(z_b", "self.map.forward(z_b"),
]
CONTEXT = [
    plant("gradients", MLP, "backward", "dy[:, self.inputs :]", "0 * dy[:, self.inputs :]"),
]
AFFINE = [
    *COUPLING,
    Mutation(
        "log_det",
        (
            Edit(reference, "affine_forward", "log_scale.sum(axis=1)", "0 * log_scale[:, 0]"),
            Edit(reference, "affine_inverse", "-log_scale.sum(axis=1)", "0 * log_scale[:, 0]"),
        ),
    ),
    plant("inverse", reference, "affine_forward", "log_scale.sum", "-log_scale.sum"),
    plant("inverse", reference, "affine_inverse", "np.exp(-log_scale)", "np.exp(log_scale)"),
    plant("inverse", Affine, "inverse", "AffineCache(x", "AffineCache(z"),
    plant("gradients", reference, "affine_backward", " + dlog_det[:, None]", ""),
    plant("gradients", reference, "affine_backward", "dx * x + ", "dz * x + "),
    plant("gradients", reference, "affine_backward", "tanh * tanh)", "tanh)"),
    plant("gradients", reference, "affine_backward", "[dz, draw]", "[dx, draw]"),
    plant("gradients", reference, "affine_inverse_backward", "- dlog_det", "+ dlog_det"),
    plant("gradients", reference, "affine_inverse_backward", "-dx * x", "dx * x"),
    plant("gradients", reference, "affine_inverse_backward", "[-dz,", "[dz,"),
]
LEARNED_BOUND = [
    *AFFINE,
    plant("gradients", reference, "affine_backward", "dbound +=", "dbound -="),
    plant("gradients", reference, "affine_backward", "dbound +=", "dbound[...] ="),
    plant("gradients", reference, "affine_inverse_backward", "dbound +=", "dbound += 0 *"),
]
ADDITIVE = [
    *COUPLING,
    plant("inverse", Additive, "inverse", "z - params", "z + params"),
    plant("inverse", Additive, "inverse", "xp.zeros", "xp.ones"),
    plant("log_det", Additive, "forward", "xp.zeros", "xp.ones"),
    plant("gradients", Additive, "backward", "dz.copy()", "0 * dz"),
    plant("gradients", Additive, "inverse_backward", "-dx", "dx.copy()"),
]
PERMUTATION = [
    plant("inverse", Permutation, "inverse", ".permute(z, self._undo)", ".permute(z, [0] * 5)"),
    plant("log_det", Permutation, "forward", "xp.zeros", "xp.ones"),
    plant("gradients", Permutation, "backward", "self._undo), None", "self._undo[[0] * 5]), None"),
    plant("gradients", Permutation, "inverse_backward", "permute(dx", "permute(-dx"),
]
NOT_AN_INVOLUTION = [
    *PERMUTATION,
    plant("inverse", Permutation, "inverse", "(z, self._undo)", "(z, self._order)"),
    plant("gradients", Permutation, "backward", "(dz, self._undo)", "(dz, self._order)"),
]
DIAGONAL = [
    Mutation(
        "log_det",
        (
            Edit(reference, "diagonal_forward", "log_scale.sum()", "0.0"),
            Edit(reference, "diagonal_inverse", "-log_scale.sum()", "0.0"),
        ),
    ),
    plant("inverse", reference, "diagonal_inverse", "-log_scale.sum()", "log_scale.sum()"),
    plant("gradients", reference, "diagonal_backward", " + dlog_det.sum()", ""),
    plant("gradients", reference, "diagonal_backward", "(dx * x)", "(dz * x)"),
    plant("gradients", reference, "diagonal_inverse_backward", "dlog_scale -=", "dlog_scale +="),
    plant("gradients", reference, "diagonal_inverse_backward", "exp(-log", "exp(log"),
]
BATCH_NORM = [
    Mutation(  # log sigma missing from both
        "log_det",
        (
            Edit(reference, "batch_norm_forward", "log_scale.sum()", "log_gamma.sum()"),
            Edit(reference, "batch_norm_inverse", "-log_scale.sum()", "-log_gamma.sum()"),
        ),
    ),
    plant("inverse", reference, "batch_norm_inverse", "* np.exp(-log_scale) + mean", "+ mean"),
    plant("gradients", reference, "batch_norm_backward", "x_hat + dlog_det_sum\n", "x_hat\n"),
    plant("gradients", reference, "batch_norm_backward", "dbeta += dz", "dbeta += dx_hat"),
    plant("gradients", reference, "batch_norm_inverse_backward", "dbeta -=", "dbeta +="),
    plant("gradients", reference, "batch_norm_inverse_backward", " + dlog_det.sum()", ""),
    plant("gradients", BatchNorm, "forward", "own=False", "own=True"),
]
BATCH_NORM_TRAINING = [
    plant("training", reference, "batch_norm_backward", " - dx_hat.mean(axis=0)", ""),
    plant(
        "training", reference, "batch_norm_backward",
        "(dx_hat_x_hat + dlog_det_sum) /", "dx_hat_x_hat /",
    ),
    plant("training", reference, "batch_norm_backward", "if own", "if False"),
]  # fmt: skip
LOGIT = [
    Mutation(  # one factor of p (1 - p) missing from both
        "log_det",
        (
            Edit(reference, "logit_forward", " - log_q).sum(", ").sum("),
            Edit(reference, "logit_inverse", "(log_pq - ", "(log_pq + np.log1p(np.exp(y)) - "),
        ),
    ),
    plant("inverse", reference, "logit_inverse", "(p - lam)", "p"),
    plant("gradients", reference, "logit_backward", "dlog_det[:, None] *", "0 *"),
    plant("gradients", reference, "logit_backward", "np.cosh(y / 2) ** 2", "np.cosh(y / 2)"),
    plant("gradients", reference, "logit_inverse_backward", "- dlog_det[", "+ dlog_det["),
    plant("log_det", reference, "logit_inverse_backward", "4 * slope", "slope"),
]
SCALE = [
    plant("log_det", Scale, "_log_det", "sign * x[0].size", "sign"),
    plant("inverse", Scale, "_log_det", "sign * x[0].size", "x[0].size"),
    plant("inverse", Scale, "inverse", "z / self.factor", "z * self.factor"),
    plant("gradients", Scale, "backward", "dz * self.factor", "dz"),
    plant("gradients", Scale, "inverse_backward", "dx / self.factor", "dx * self.factor"),
]
CHAIN = [
    plant("log_det", Chain, "_walk", "log_det += layer_log_det", "log_det = layer_log_det"),
    plant("inverse", Chain, "_walk", "if direction is INVERSE", "if False"),
    plant("gradients", Chain, "_walk_back", "(layer_cache, dx, dlog", "(layer_cache, dx, 0 * dlog"),
    plant("gradients", Chain, "_walk_back", 'if pull_back == "backward"', "if True"),
]
CHAIN_CONTEXT = [
    *CHAIN,
    plant("gradients", Chain, "_walk_back", "accumulate(dcontext, layer_", "(layer_"),
]
INVERSE = [
    plant("gradients", Inverse, "backward", ".inverse_backward(", ".backward("),
    plant("gradients", Inverse, "inverse_backward", ".backward(", ".inverse_backward("),
    plant("inverse", Inverse, "inverse", ".forward(", ".inverse("),
]

MUTATIONS: dict[str, list[Mutation]] = {
    "additive-half": ADDITIVE + TANH,
    "additive-parity": ADDITIVE + TANH,
    "additive-context": ADDITIVE + TANH + CONTEXT,
    "affine-half": LEARNED_BOUND + TANH,
    "affine-half-flipped": LEARNED_BOUND + TANH,
    "affine-parity": LEARNED_BOUND + TANH,
    "affine-scattered": LEARNED_BOUND + TANH,
    "affine-fixed-bound": AFFINE + TANH,
    "affine-context": LEARNED_BOUND + TANH + CONTEXT,
    "affine-relu": NETWORK + RELU,
    "affine-leaky-relu": NETWORK + LEAKY_RELU,
    "affine-elu": NETWORK + ELU,
    "affine-linear-conditioner": PRODUCT,
    "affine-wide": TANH,
    "reverse": PERMUTATION,
    "swap-halves": NOT_AN_INVOLUTION,
    "shuffle": NOT_AN_INVOLUTION,
    "cyclic-shift": NOT_AN_INVOLUTION,
    "diagonal": DIAGONAL,
    "batch-norm": BATCH_NORM + BATCH_NORM_TRAINING,
    "logit-pixels": LOGIT,
    "logit-unit": LOGIT,
    "scale": SCALE,
    "chain": CHAIN + LEARNED_BOUND + ADDITIVE,
    "chain-context": CHAIN_CONTEXT,
    "chain-nested": CHAIN + SCALE,
    "inverse-coupling": INVERSE + LEARNED_BOUND,
    "inverse-batch-norm": INVERSE + BATCH_NORM[:-1],
}


def test_every_case_has_mutations():
    assert MUTATIONS.keys() == CASES.keys()
    for name, mutations in MUTATIONS.items():
        assert "gradients" in {mutation.check for mutation in mutations}, name


@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_errors_are_caught(name, monkeypatch):
    case = CASES[name](5)
    case.prepare(seed=1)
    x, context = case.smooth_arrays(4, seed=1)
    for check in {mutation.check for mutation in MUTATIONS[name]}:
        CHECKS[check](case, x, context)  # nothing planted: it passes
    for mutation in MUTATIONS[name]:
        with monkeypatch.context() as patch:
            for edit in mutation.edits:
                patch.setattr(edit.owner, edit.function, mutated(edit))
            try:
                CHECKS[mutation.check](case, x, context)
            except CheckError:
                continue
            pytest.fail(f"check {mutation.check!r} does not see {mutation.edits}")


def mutated(edit: Edit):
    """The function with `old` replaced by `new` in its source."""
    function = getattr(edit.owner, edit.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"update this table: {edit.old!r} in {edit.function}"
    namespace: dict[str, Any] = {}
    exec(source.replace(edit.old, edit.new), function.__globals__, namespace)
    return namespace[edit.function]
