"""The monotone rational-quadratic spline on [-bound, bound], the identity outside.

Shapes: x, z (B, d); params (B, (3K-1) d), part-major: of each feature K raw widths, K raw heights,
K-1 raw derivatives; log_det (B,); bound a float.
Source: Neural Spline Flows, arXiv:1906.04032, eq. 4-8 and appendix A; docs/rational_quadratic.md
has the derivation. Sums of positive terms stand where the paper's could cancel.
"""

import math
from typing import NamedTuple

import numpy as np

MINIMUM = 1e-3  # of a width or height, as a part of the box, and of a derivative
SHIFT = math.log(math.expm1(1 - MINIMUM))  # a raw derivative of 0 means 1


class Bin(NamedTuple):
    """The numbers of each element's bin, (B, d); the softmaxes of all bins, (B, K, d)."""

    index: np.ndarray  # 0 to K-1
    x0: np.ndarray  # its lower edges
    y0: np.ndarray
    width: np.ndarray
    height: np.ndarray
    raw0: np.ndarray  # raw derivatives at its edges, 0 at the ends of the box
    raw1: np.ndarray
    softmaxes: tuple[np.ndarray, np.ndarray]  # of widths and heights


class Point(NamedTuple):
    """What z and z'(x) are made of, (B, d)."""

    xi: np.ndarray
    eta: np.ndarray
    s: np.ndarray
    d0: np.ndarray
    d1: np.ndarray
    denominator: np.ndarray  # of q
    p: np.ndarray  # z'(x) = s^2 p / denominator^2
    q: np.ndarray
    slope: np.ndarray  # z'(x)


def rational_quadratic_forward(x, params, bound):
    """z = spline(x); log_det = sum_j log z'(x_j). Returns z, log_det."""
    inside = np.abs(x) < bound
    bin = _find_bin(x, params, bound, axis=0)
    at = _evaluate(np.clip((x - bin.x0) / bin.width, 0, 1), bin)
    z = np.where(inside, bin.y0 + bin.height * at.q, x)  # F7
    return z, np.log(np.where(inside, at.slope, 1)).sum(axis=1)  # F8


def rational_quadratic_inverse(z, params, bound):
    """x = spline^-1(z); log_det = -sum_j log z'(x_j). Returns x, log_det."""
    inside = np.abs(z) < bound
    bin = _find_bin(z, params, bound, axis=1)
    q = np.clip((z - bin.y0) / bin.height, 0, 1)
    s, d0, d1 = bin.height / bin.width, _derivative(bin.raw0), _derivative(bin.raw1)
    size = s + d0 + d1  # xi depends on the ratios of the three: no square overflows
    s, d0, d1 = s / size, d0 / size, d1 / size
    e = d0 * (1 - q) - d1 * q
    g = np.abs(e) + np.sqrt(e * e + 4 * s * s * q * (1 - q))
    small = np.where(e >= 0, 2 * s * q, g)
    xi = small / (small + np.where(e >= 0, g, 2 * s * (1 - q)))
    x = np.where(inside, bin.x0 + bin.width * xi, z)
    return x, -np.log(np.where(inside, _evaluate(xi, bin).slope, 1)).sum(axis=1)


def rational_quadratic_backward(dz, dlog_det, x, params, bound):
    """Gradient of rational_quadratic_forward. Returns dx, dparams (B, (3K-1) d)."""
    bin, at, curvature = _expand(x, params, bound)
    dlog = dlog_det[:, None]
    dx = dz * at.slope + dlog * curvature  # B7
    dparams = _dparams(dz, dlog, dx, bin, at, bound)
    inside = np.abs(x) < bound
    return np.where(inside, dx, dz), np.where(inside[:, None], dparams, 0).reshape(params.shape)


def rational_quadratic_inverse_backward(dx, dlog_det, x, params, bound):
    """Gradient of rational_quadratic_inverse; x is its output. Returns dz, dparams."""
    bin, at, curvature = _expand(x, params, bound)
    dlog = dlog_det[:, None]
    dz = (dx - dlog * curvature) / at.slope
    dparams = -_dparams(dz, dlog, dx, bin, at, bound)
    inside = np.abs(x) < bound
    return np.where(inside, dz, dx), np.where(inside[:, None], dparams, 0).reshape(params.shape)


def _find_bin(value, params, bound, axis):
    """The bin that value, an x (axis 0) or a z (axis 1), lies in once it is moved into the box."""
    d = value.shape[1]
    raw = params.reshape(len(params), params.shape[1] // d, d)
    bins = (raw.shape[1] + 1) // 3
    softmaxes = _softmax(raw[:, :bins]), _softmax(raw[:, bins : 2 * bins])
    sizes = [2 * bound * (MINIMUM + (1 - bins * MINIMUM) * p) for p in softmaxes]  # F1
    edges = [np.cumsum(size, axis=1) - size - bound for size in sizes]  # F2: the lower ones
    value = np.clip(value, -bound, bound)
    index = (value[:, None] >= edges[axis][:, 1:]).sum(axis=1)  # F4
    end = np.zeros_like(raw[:, :1])
    raw_derivatives = np.concatenate([end, raw[:, 2 * bins :], end], axis=1)

    def pick(array, k):
        return np.take_along_axis(array, k[:, None], axis=1)[:, 0]

    lower = [pick(array, index) for array in (*edges, *sizes)]
    raw0, raw1 = pick(raw_derivatives, index), pick(raw_derivatives, index + 1)
    return Bin(index, *lower, raw0, raw1, softmaxes)


def _softmax(raw):
    e = np.exp(raw - raw.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _derivative(raw):
    """MINIMUM + softplus(raw + SHIFT)."""
    t = raw + SHIFT
    return MINIMUM + np.maximum(t, 0) + np.log1p(np.exp(-np.abs(t)))  # F5


def _sigmoid(t):
    return np.exp(np.minimum(t, 0)) / (1 + np.exp(-np.abs(t)))


def _evaluate(xi, bin):
    eta = 1 - xi
    s, d0, d1 = bin.height / bin.width, _derivative(bin.raw0), _derivative(bin.raw1)  # F3
    denominator = s * (xi * xi + eta * eta) + (d0 + d1) * xi * eta
    q = xi * (s * xi + d0 * eta) / denominator  # F6
    p = d1 * xi * xi + 2 * s * xi * eta + d0 * eta * eta
    ratio = s / denominator
    return Point(xi, eta, s, d0, d1, denominator, p, q, ratio * (p * ratio))


def _expand(x, params, bound):
    """Bin, Point and d log z' / dx at x, moved into the box."""
    bin = _find_bin(x, params, bound, axis=0)
    at = _evaluate(np.clip((x - bin.x0) / bin.width, 0, 1), bin)
    xi, eta, s, d0, d1, denominator, p, _, _ = at
    half = ((d1 - s) * xi + (s - d0) * eta) / p - (d0 + d1 - 2 * s) * (eta - xi) / denominator
    return bin, at, 2 * half / bin.width


def _dparams(dz, dlog, dx, bin, at, bound):
    """dparams (B, 3K-1, d) of <dz, z> + <dlog, log z'>, given its dx."""
    xi, eta, s, d0, d1, denominator, p, q, _ = at
    mix = xi * eta / denominator
    dh = dz * bin.height * mix
    ds = dh * (d1 * xi * xi - d0 * eta * eta) / denominator
    ds += 2 * dlog * (1 / s + xi * eta / p - (xi * xi + eta * eta) / denominator)  # B6, B8
    dd0 = dh * (1 - q) + dlog * (eta * eta / p - 2 * mix)
    dd1 = -dh * q + dlog * (xi * xi / p - 2 * mix)
    dwidth = -dx * xi - ds * s / bin.width  # B4, B3
    dheight = dz * q + ds / bin.width

    # The edges of a bin move with the sizes of all bins before it.
    bins = bin.softmaxes[0].shape[1]
    k, index = np.arange(bins)[:, None], bin.index[:, None]
    parts = []
    for softmax, dedge, dsize in zip(bin.softmaxes, (-dx, dz), (dwidth, dheight), strict=True):
        dsizes = np.where(k < index, dedge[:, None], np.where(k == index, dsize[:, None], 0))  # B2
        mean = (softmax * dsizes).sum(axis=1, keepdims=True)
        parts.append(2 * bound * (1 - bins * MINIMUM) * softmax * (dsizes - mean))  # B1
    draw0, draw1 = dd0 * _sigmoid(bin.raw0 + SHIFT), dd1 * _sigmoid(bin.raw1 + SHIFT)  # B5
    inner = k[:-1]  # edge k + 1 of the box lies above bin k and below bin k + 1
    parts.append(
        np.where(inner == index, draw1[:, None], np.where(inner + 1 == index, draw0[:, None], 0))
    )
    return np.concatenate(parts, axis=1)
