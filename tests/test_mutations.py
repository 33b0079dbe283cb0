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
from npflow.bijections import (
    BatchNorm,
    Chain,
    Coupling,
    FactorOut,
    ImageCoupling,
    Inverse,
    InvertibleConv1x1,
    MaskedAutoregressive,
    Permutation,
    Planar,
    Radial,
    Reshape,
    Scale,
    Squeeze,
    chain,
    planar,
    radial,
)
from npflow.elementwise import Additive, Affine, RationalQuadratic
from npflow.errors import CheckError
from npflow.kernels import reference
from npflow.kernels.reference import conv, linear, masked_linear, rational_quadratic
from npflow.networks import MADE, MLP, convnet


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
    plant("gradients", Coupling, "_backward", "(dx_a, dz_a,", "(dx_a, 0 * dz_a,"),
    plant("gradients", reference, "merge_add", "merge(x_a + y_a", "merge(y_a"),
    plant("inverse", Coupling, "inverse", "self.map.inverse(z_b", "self.map.forward(z_b"),
]
CONTEXT = [
    plant("gradients", MLP, "backward", "dy[:, self.inputs :]", "0 * dy[:, self.inputs :]"),
]
AFFINE_MAP = [
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
AFFINE = COUPLING + AFFINE_MAP
BOUND = [
    plant("gradients", reference, "affine_backward", "dbound +=", "dbound -="),
    plant("gradients", reference, "affine_backward", "dbound +=", "dbound[...] ="),
    plant("gradients", reference, "affine_inverse_backward", "dbound +=", "dbound += 0 *"),
]
LEARNED_BOUND = AFFINE + BOUND
ADDITIVE_MAP = [
    plant("inverse", Additive, "inverse", "z - params", "z + params"),
    plant("inverse", Additive, "inverse", "xp.zeros", "xp.ones"),
    plant("log_det", Additive, "forward", "xp.zeros", "xp.ones"),
    plant("gradients", Additive, "backward", "dz.copy()", "0 * dz"),
    plant("gradients", Additive, "inverse_backward", "-dx", "dx.copy()"),
]
ADDITIVE = COUPLING + ADDITIVE_MAP
ONE_BIN = [  # what the identity can show
    plant("inverse", reference, "rational_quadratic_forward", "bin.y0 + ", "1.01 * "),
    plant("inverse", reference, "rational_quadratic_inverse", "bin.x0 + ", "1.01 * "),
    plant("log_det", reference, "rational_quadratic_forward", "at.q, x)", "at.q, 2 * x)"),
    plant("gradients", rational_quadratic, "_dparams", "(dsizes - mean)", "dsizes"),
]
SPLINE_MAP = [
    *ONE_BIN,
    plant("inverse", RationalQuadratic, "inverse", "Cache(x", "Cache(z"),
    Mutation(  # the same wrong slope in both log-dets
        "log_det", (Edit(rational_quadratic, "_evaluate", "+ 2 * s * xi", "+ s * xi"),)
    ),
    plant("log_det", rational_quadratic, "_evaluate", "(p * ratio)", "p"),
    plant("inverse", reference, "rational_quadratic_forward", "np.log(", "-np.log("),
    plant("inverse", reference, "rational_quadratic_inverse", "4 * s", "2 * s"),
    plant("gradients", reference, "rational_quadratic_backward", "dz * at.slope", "dz"),
    plant("gradients", reference, "rational_quadratic_backward", " + dlog * curvature", ""),
    plant(
        "gradients", reference, "rational_quadratic_backward", "(inside, dx, dz)", "(x < x, dz, dx)"
    ),
    plant("gradients", reference, "rational_quadratic_inverse_backward", "- dlog", "+ dlog"),
    plant("gradients", reference, "rational_quadratic_inverse_backward", "-_dparams", "_dparams"),
    plant(
        "gradients", reference, "rational_quadratic_inverse_backward", "/ at.slope", "* at.slope"
    ),
    plant("gradients", rational_quadratic, "_expand", "2 * half", "half"),
    plant("gradients", rational_quadratic, "_dparams", "dh * (d1", "0 * (d1"),
    plant("gradients", rational_quadratic, "_dparams", "(1 / s +", "("),
    plant("gradients", rational_quadratic, "_dparams", "dh * (1 - q)", "dh"),
    plant("gradients", rational_quadratic, "_dparams", "eta * eta / p - 2 * mix", "eta * eta / p"),
    plant("gradients", rational_quadratic, "_dparams", "-dh * q", "dh * q"),
    plant("gradients", rational_quadratic, "_dparams", "-dx * xi", "0 * dx"),
    plant("gradients", rational_quadratic, "_dparams", "- ds * s", "+ ds * s"),
    plant("gradients", rational_quadratic, "_dparams", "dz * q + ds", "ds"),
    plant("gradients", rational_quadratic, "_dparams", "k < index", "k > index"),
    plant("gradients", rational_quadratic, "_dparams", "dd0 * _sigmoid", "dd0 + 0 * _sigmoid"),
    plant("gradients", rational_quadratic, "_dparams", "inner + 1 == index", "inner + 2 == index"),
]
SPLINE = COUPLING + SPLINE_MAP
MANY_BINS = [
    *SPLINE,
    plant("inverse", reference, "rational_quadratic_inverse", "axis=1)\n    q", "axis=0)\n    q"),
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
ACTNORM = [
    Mutation(
        "log_det",
        (
            Edit(reference, "actnorm_forward", "log_scale.sum()", "0.0"),
            Edit(reference, "actnorm_inverse", "log_scale.sum()", "0.0"),
        ),
    ),
    plant("inverse", reference, "actnorm_inverse", "-_pixels", "_pixels"),
    plant("inverse", reference, "actnorm_inverse", "(z - shift) *", "z *"),
    plant("inverse", reference, "actnorm_inverse", "(z - shift) *", "(z * shift) *"),
    plant("inverse", reference, "actnorm_inverse", "np.exp(-log", "np.exp(log"),
    plant("gradients", reference, "actnorm_backward", "+ _pixels(x) * dlog_det.sum()", ""),
    plant("gradients", reference, "actnorm_backward", "(dx * x)", "(dz * x)"),
    plant("gradients", reference, "actnorm_backward", "dshift +=", "dshift[...] ="),
    plant("gradients", reference, "actnorm_backward", "(dz)", "(dx)"),
    plant("gradients", reference, "actnorm_inverse_backward", "dlog_scale -=", "dlog_scale +="),
    plant("gradients", reference, "actnorm_inverse_backward", "(dz)", "(dx)"),
    plant("gradients", reference, "actnorm_inverse_backward", "exp(-log", "exp(log"),
]
CONV1X1 = [
    plant("log_det", InvertibleConv1x1, "_log_det_of", "_pixels(x) *", "0 *"),
    plant("inverse", InvertibleConv1x1, "inverse", "self._updated_inverse()", "self._weight().T"),
    plant("inverse", InvertibleConv1x1, "inverse", "-self._log_det_of", "self._log_det_of"),
    plant("gradients", InvertibleConv1x1, "backward", "_pixels(dz) *", "0 *"),
    plant("gradients", InvertibleConv1x1, "backward", "self._weight()", "self._weight().T.copy()"),
    plant("gradients", InvertibleConv1x1, "inverse_backward", "-_pixels", "_pixels"),
    plant("gradients", InvertibleConv1x1, "inverse_backward", "-products", "products"),
    plant("gradients", InvertibleConv1x1, "inverse_backward", "inverse.T", "inverse"),
]
DENSE = [
    *CONV1X1,
    plant("gradients", InvertibleConv1x1, "_log_det_of", "self._updated_inverse()\n", "pass\n"),
    plant("gradients", reference, "update_inverse", "slogdet(exact)[1]", "slogdet(exact)[0]"),
    plant("gradients", reference, "update_inverse", "np.array_equal(weight, factored)", "True"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "_updated_inverse().T", "_eye"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "_inverse().T", "_inverse()"),
]
PLU = [
    *CONV1X1,
    plant("log_det", InvertibleConv1x1, "_log_det_of", "self.log_s.value.sum()", "0"),
    plant("log_det", InvertibleConv1x1, "_factors", "xp.exp(self.log_s.value)", "xp.ones(5)"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "self.permutation.value.T @ ", ""),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "upper.T", "upper"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "lower.T @", "lower @"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", "(dupper * upper)", "dupper"),
    plant("gradients", InvertibleConv1x1, "_add_gradients", " + dlog_det\n", "\n"),
]
ACTNORM_PIXELS = [
    plant("log_det", reference, "actnorm_forward", "_pixels(x) *", ""),
    plant("gradients", reference, "actnorm_backward", "_pixels(x) *", ""),
]
CONV1X1_PIXELS = [
    plant("log_det", InvertibleConv1x1, "_log_det_of", "_pixels(x) *", ""),
    plant("gradients", InvertibleConv1x1, "inverse_backward", "_pixels(dx) *", ""),
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
PLANAR = [
    plant("log_det", planar, "_slope", "(1 - h * h) * s", "(1 - h) * s"),
    plant("log_det", Planar, "_push", "(s - 1 - w_u)", "(s - w_u)"),
    plant("inverse", Planar, "inverse", "-self.backend.xp.log(", "self.backend.xp.log("),
    plant("inverse", Planar, "inverse", "PlanarCache(x", "PlanarCache(z"),
    plant("inverse", planar, "solve", "+ s * h", "+ h"),
    plant("inverse", planar, "solve", "range(ITERATIONS)", "range(2)"),
    plant("inverse", planar, "solve", "xp.copysign(v, c)", "v"),
    plant("inverse", planar, "_less_tanh", "7 + v2", "6 + v2"),
    plant("gradients", Planar, "backward", "dlog_det / _slope(h, s)", "dlog_det"),
    plant("gradients", Planar, "backward", " + dlog_q * 2 * h * (1 - s)", ""),
    plant("gradients", Planar, "backward", "dx = dz + dv", "dx = dz - dv"),
    plant("gradients", Planar, "backward", "(ds + dfactor)", "dfactor"),
    plant("gradients", Planar, "backward", "expm1(-s) - dfactor", "expm1(-s)"),
    plant("gradients", Planar, "backward", "u.grad += du_hat + dw_u * w", "u.grad += du_hat"),
    plant("gradients", Planar, "backward", " + dw_u * u", ""),
    plant("gradients", Planar, "backward", " - 2 * factor * dfactor * w", ""),
    plant("gradients", Planar, "backward", "w.grad += dv", "w.grad[...] = dv"),
    plant("gradients", Planar, "backward", "b.grad += dv", "b.grad -= dv"),
    plant("gradients", Planar, "inverse_backward", "/ q * (dx", "* (dx"),
    plant("gradients", Planar, "inverse_backward", "dlog_det / q", "-dlog_det / q"),
    plant("gradients", Planar, "inverse_backward", "-dz, -dlog_det", "-dz, dlog_det"),
]
RADIAL = [
    plant("log_det", radial, "_stretch", "r + 2 * alpha", "r + alpha"),
    plant("log_det", Radial, "_log_det", "(self.features - 1) * ", ""),
    plant("log_det", Radial, "_log_det", " + xp.log(q)", ""),
    plant("inverse", Radial, "inverse", "-self._log_det(r)", "self._log_det(r)"),
    plant("inverse", Radial, "inverse", "RadialCache(x", "RadialCache(z"),
    plant("inverse", Radial, "inverse", "twice / 2", "twice"),
    plant("inverse", Radial, "inverse", "2 * xp.sqrt(alpha * y)", "xp.sqrt(alpha * y)"),
    plant("gradients", Radial, "backward", " + dlog_det * (d.shape[1] - 1) / g", ""),
    plant("gradients", Radial, "backward", " + dlog_q * 2 * alpha)", ")"),
    plant("gradients", Radial, "backward", " + dr[:, None] * ray", ""),
    plant("gradients", Radial, "backward", " + dlog_q * alpha", ""),
    plant("gradients", Radial, "backward", " - 2 * dlog_det / width", ""),
    plant("gradients", Radial, "backward", "(dz - dx)", "dz"),
    plant("gradients", Radial, "backward", "x0.grad +=", "x0.grad[...] ="),
    plant("gradients", Radial, "backward", " * -xp.expm1(-alpha)", ""),
    plant("gradients", Radial, "backward", " * -xp.expm1(-s)", ""),
    plant("gradients", Radial, "inverse_backward", "- along / g", ""),
    plant("gradients", Radial, "inverse_backward", "- dlog_det *", "+ dlog_det *"),
    plant("gradients", Radial, "inverse_backward", " - 1) / (g", " - 2) / (g"),
    plant("gradients", Radial, "inverse_backward", "-dz, -dlog_det", "dz, -dlog_det"),
]
SCALE = [
    plant("log_det", Scale, "_log_det", "sign * x[0].size", "sign"),
    plant("inverse", Scale, "_log_det", "sign * x[0].size", "x[0].size"),
    plant("inverse", Scale, "inverse", "z / self.factor", "z * self.factor"),
    plant("gradients", Scale, "backward", "dz * self.factor", "dz"),
    plant("gradients", Scale, "inverse_backward", "dx / self.factor", "dx * self.factor"),
]
SUM = [
    plant("log_det", Chain, "_walk", "log_dets.append(log_det)", "log_dets[0] = log_det"),
    plant("log_det", reference, "add_up", "total += array", "pass"),
    plant("gradients", Chain, "_walk_back", "(layer_cache, dx, dlog", "(layer_cache, dx, 0 * dlog"),
]
CHAIN = [
    *SUM,
    plant("inverse", Chain, "_walk", "layers.reverse()", "pass"),
    plant("gradients", Chain, "_walk_back", "layers.reverse()", "pass"),
]
SUM_CONTEXT = [
    plant("gradients", Chain, "_walk_back", "accumulate(dcontext, layer_", "(layer_"),
]
RESHAPE = [
    plant("inverse", Reshape, "inverse", "xp.zeros", "xp.ones"),
    plant("log_det", Reshape, "forward", "xp.zeros", "xp.ones"),
    plant("gradients", Reshape, "backward", "dz.reshape", "0 * dz.reshape"),
    plant("gradients", Reshape, "inverse_backward", "dx.reshape", "0 * dx.reshape"),
]
SQUEEZE = [
    plant("inverse", Squeeze, "inverse", "xp.zeros", "xp.ones"),
    plant("log_det", Squeeze, "forward", "xp.zeros", "xp.ones"),
    plant("gradients", Squeeze, "backward", "_unsqueeze(dz)", "_unsqueeze(dz[..., ::-1])"),
    plant("gradients", Squeeze, "inverse_backward", "_squeeze(dx)", "_squeeze(-dx)"),
]
SEVERAL_BLOCKS = [  # of 2 x 2 pixels
    plant("inverse", Squeeze, "_squeeze", ".transpose(0, 1, 3, 2, 4, 5)", ""),
    plant("inverse", Squeeze, "_unsqueeze", ".transpose(0, 1, 3, 2, 4, 5)", ""),
]
CONVOLUTION = [
    plant("gradients", conv, "linear_backward", "dweight += x.T", "dweight[...] = x.T"),
    plant("gradients", conv, "linear_backward", "dbias += da", "dbias += 0 * da"),
    plant("gradients", reference, "scaled_weight_backward", "+= factor * (", "+= ("),
]
PATCHES = [
    *CONVOLUTION,
    plant("gradients", conv, "patches", "(0, 0)])", '(0, 0)], "edge")'),
    plant("gradients", conv, "add_patches", "v : v + width", "k - 1 - v : k - 1 - v + width"),
]
PATCHES_TANH = [
    *PATCHES,
    plant("gradients", linear, "_act_derivative", "(1 - y) * (1 + y)", "1 - y"),
]
IMAGE_CONTEXT = [
    plant("gradients", convnet, "split_context", ".sum(axis=(1, 2))", ".mean(axis=(1, 2))"),
]
GATED = [
    plant("gradients", reference, "concat_elu_backward", "dp - dn", "dp + dn"),
    plant("gradients", reference, "gated_norm_backward", " - mean - nor", " - nor"),
    plant("gradients", reference, "gated_norm_backward", "dgain += (", "dgain[...] = ("),
]
IMAGE_COUPLING = [
    plant("inverse", ImageCoupling, "inverse", "self.map.inverse(z_b", "self.map.forward(z_b"),
    plant("gradients", ImageCoupling, "_backward", "(dx_a, dz_a,", "(dx_a, 0 * dz_a,"),
]
PIXELS = [
    Mutation(  # the log-det of one pixel
        "log_det",
        (
            Edit(ImageCoupling, "forward", ".sum(axis=1)", "[:, 0]"),
            Edit(ImageCoupling, "inverse", ".sum(axis=1)", "[:, 0]"),
        ),
    ),
    plant("gradients", ImageCoupling, "_backward", "xp.repeat(", "xp.tile("),
]
CHANNELS = [
    *IMAGE_COUPLING,
    plant("gradients", ImageCoupling, "_condition_backward", "dseen.resh", "0 * dseen.resh"),
]
CHECKERBOARD = [
    *IMAGE_COUPLING,
    plant("gradients", ImageCoupling, "_condition_backward", "_split(dseen)", "_split(0 * dseen)"),
    plant("gradients", ImageCoupling, "_condition_backward", "(zeros, dpar", "(zeros, 0 * dpar"),
]
AS_MANY_KEPT = [  # pixels as transformed ones
    *CHECKERBOARD,
    plant("gradients", ImageCoupling, "_condition", "self._used)", "self._ignored)"),
    plant("gradients", ImageCoupling, "_merge", "(x_a, x_b,", "(x_b, x_a,"),
]
FACTOR_OUT = [
    plant("inverse", FactorOut, "join", "[kept, factored]", "[factored, kept]"),
    plant("gradients", FactorOut, "split", "x[..., self._kept :]", "-x[..., self._kept :]"),
    plant("gradients", chain._Factored, "cut_from", "z[:, stop", "0 * z[:, stop"),
]
FACTOR_OUT_TWICE = [
    *FACTOR_OUT,
    plant("inverse", chain._Factored, "append_to", "*reversed(self.parts)", "*self.parts"),
    plant("inverse", chain._Factored, "cut_from", "stop -= size", "pass"),
]
INVERSE = [
    plant("gradients", Inverse, "backward", ".inverse_backward(", ".backward("),
    plant("gradients", Inverse, "inverse_backward", ".backward(", ".inverse_backward("),
    plant("inverse", Inverse, "inverse", ".forward(", ".inverse("),
]
STORED_MASKED = [
    plant("gradients", reference, "masked_linear_backward", "dweight += pro", "dweight[...] = pro"),
]
MASKED_LINEAR = [
    plant("gradients", reference, "masked_linear_backward", "product * mask", "product"),
    plant("gradients", masked_linear, "linear_backward", "dbias += da", "dbias += 0 * da"),
    plant("gradients", MaskedAutoregressive, "backward", "dx += dx_network", "pass"),
    plant("gradients", MaskedAutoregressive, "inverse_backward", "(cache.map, v", "(cache.map, dx"),
    plant("gradients", MaskedAutoregressive, "inverse_backward", "network, dp", "network, 0 * dp"),
    plant("inverse", reference, "autoregressive_inverse", " + biases[-1][own]", ""),
    plant("gradients", reference, "autoregressive_inverse_backward", "features:] = dx", "0:] = 0"),
    plant(
        "gradients",
        reference,
        "autoregressive_inverse_backward",
        "+= dparams @ weights",
        "-= dparams @ weights",
    ),
]
MASKED = [
    *MASKED_LINEAR,
    plant("gradients", masked_linear, "linear_backward", "x.T @ da", "x.T @ dy"),
    plant(
        "inverse",
        reference,
        "autoregressive_inverse",
        "h[:, k] = _act(a, activation)",
        "h[:, k] = a",
    ),
    plant(
        "inverse",
        reference,
        "autoregressive_inverse",
        "else ends[layer][i - 1]",
        "else ends[layer][i - 1] + 1",
    ),
    plant(
        "gradients",
        reference,
        "autoregressive_inverse_backward",
        "else ends[layer][i - 1]",
        "else ends[layer][i - 1] + 1",
    ),
    plant(
        "gradients",
        reference,
        "autoregressive_inverse_backward",
        "* _act_derivative(",
        "+ _act_derivative(",
    ),
]
MASKED_TANH = [
    *MASKED,
    plant("gradients", linear, "_act_derivative", "(1 - y) * (1 + y)", "1 - y"),
]
MASKED_CONTEXT = [
    plant(
        "gradients",
        MADE,
        "_part",
        "contiguous(dinputs[:, : self.context])",
        "0 * dinputs[:, : self.context]",
    ),
]
DIRECT = [
    plant("gradients", MADE, "backward", "dy + dinputs if", "dy if"),
    plant(
        "inverse",
        reference,
        "autoregressive_inverse",
        "inputs[:, :known] @ direct",
        "0 * inputs[:, :known] @ direct",
    ),
    plant(
        "gradients",
        reference,
        "autoregressive_inverse_backward",
        "dparams @ direct",
        "0 * dparams @ direct",
    ),
]
RANDOM_ORDER = [
    plant("inverse", MADE, "inverse", "self._by_feature(params, masks)", "params"),
    plant("gradients", MADE, "inverse_backward", "self._by_place(dx, masks)", "dx"),
    plant(
        "gradients",
        MADE,
        "_part",
        "return self._by_feature(dinputs, masks), None",
        "return dinputs, None",
    ),
]
AGNOSTIC = [
    plant(
        "gradients",
        MADE,
        "_gradient",
        "self._take(found, *(masks.undo[axis] for axis in axes))",
        "found",
    ),
    plant("gradients", MADE, "_gradient", "masks.undo[axis]", "masks.units[axis]"),
    plant("gradients", MADE, "_gradient", "parameter.grad +=", "parameter.grad[...] ="),
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
    "spline-half": SPLINE + TANH,
    "spline-parity": MANY_BINS + TANH,
    "spline-one-bin": ONE_BIN,
    "spline-relu": SPLINE + NETWORK + RELU,
    "spline-context": SPLINE + TANH + CONTEXT,
    "reverse": PERMUTATION,
    "swap-halves": NOT_AN_INVOLUTION,
    "shuffle": NOT_AN_INVOLUTION,
    "cyclic-shift": NOT_AN_INVOLUTION,
    "diagonal": DIAGONAL,
    "batch-norm": BATCH_NORM + BATCH_NORM_TRAINING,
    "actnorm": ACTNORM,
    "actnorm-image": ACTNORM + ACTNORM_PIXELS,
    "conv1x1-dense": DENSE,
    "conv1x1-plu": PLU,
    "conv1x1-dense-image": DENSE + CONV1X1_PIXELS,
    "conv1x1-plu-image": PLU + CONV1X1_PIXELS,
    "reshape": RESHAPE,
    "squeeze": SQUEEZE + SEVERAL_BLOCKS + RESHAPE,
    "image-coupling": CHANNELS + PIXELS + AFFINE_MAP + BOUND + PATCHES_TANH,
    "image-coupling-flipped": CHANNELS + PIXELS + AFFINE_MAP + BOUND + PATCHES_TANH,
    "image-coupling-squeezed-checkerboard": CHANNELS + PIXELS + AFFINE_MAP + BOUND + PATCHES_TANH,
    "image-coupling-checkerboard": CHECKERBOARD + PIXELS + AFFINE_MAP + BOUND + PATCHES_TANH,
    "image-coupling-checkerboard-flipped": AS_MANY_KEPT + PIXELS + AFFINE_MAP + PATCHES + ELU,
    "image-coupling-context": CHANNELS + PIXELS + AFFINE_MAP + PATCHES_TANH + IMAGE_CONTEXT,
    "image-coupling-checkerboard-context": AS_MANY_KEPT + PATCHES_TANH + IMAGE_CONTEXT,
    "image-coupling-relu": CHANNELS + PIXELS + AFFINE_MAP + PATCHES + RELU,
    "image-coupling-additive": CHANNELS + ADDITIVE_MAP + PATCHES_TANH,
    "image-coupling-spline": CHANNELS + PIXELS + SPLINE_MAP + PATCHES_TANH,
    "image-coupling-checkerboard-spline": CHECKERBOARD + SPLINE_MAP + PATCHES_TANH,
    "image-coupling-gated": CHANNELS + PIXELS + AFFINE_MAP + GATED,
    "multi-scale": FACTOR_OUT + SUM + SQUEEZE + CHANNELS + PIXELS + ADDITIVE_MAP + AFFINE_MAP,
    "multi-scale-context": FACTOR_OUT + SUM + IMAGE_CONTEXT,
    "multi-scale-nested": FACTOR_OUT + SUM + INVERSE,
    "inverse-multi-scale": FACTOR_OUT + INVERSE + SQUEEZE,
    "glow": FACTOR_OUT_TWICE + SEVERAL_BLOCKS + SUM + CHANNELS + PIXELS + ACTNORM_PIXELS,
    "logit-pixels": LOGIT,
    "logit-unit": LOGIT,
    "planar": PLANAR,
    "radial": RADIAL,
    "scale": SCALE,
    "autoregressive": MASKED_TANH + STORED_MASKED,
    "autoregressive-additive": MASKED_TANH + STORED_MASKED,
    "autoregressive-context": MASKED_TANH + MASKED_CONTEXT,
    "autoregressive-direct": MASKED_TANH + MASKED_CONTEXT + DIRECT,
    "autoregressive-linear": MASKED_LINEAR,
    "autoregressive-deep": MASKED_TANH + STORED_MASKED,
    "autoregressive-spline": MASKED_TANH + SPLINE_MAP,
    "autoregressive-relu": MASKED + RELU,
    "autoregressive-elu": MASKED + ELU,
    "autoregressive-random-order": MASKED_TANH + RANDOM_ORDER,
    "autoregressive-agnostic": MASKED_TANH + MASKED_CONTEXT + DIRECT + AGNOSTIC,
    "inverse-autoregressive": INVERSE + MASKED_TANH,
    "chain": CHAIN + LEARNED_BOUND + ADDITIVE,
    "chain-context": CHAIN + SUM_CONTEXT,
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
