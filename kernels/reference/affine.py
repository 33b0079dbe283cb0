"""The affine map z = x e^s + t with a bounded log-scale s = bound * tanh(raw).

Shapes: x, z (B, d); params (B, 2d) = [shift | raw]; bound (d,); log_det (B,).
Source: RealNVP, arXiv:1605.08803, eq. 4 and 8; the bounded log-scale: its section 4.1.
"""

import numpy as np


def affine_forward(x, params, bound):
    """z = x exp(s) + shift with s = bound * tanh(raw); log_det = sum_j s_j.

    Returns z (B, d), log_det (B,) and tanh(raw) (B, d), which the gradient needs.
    """
    d = x.shape[1]
    shift, raw = params[:, :d], params[:, d:]
    tanh = np.tanh(raw)  # F1
    log_scale = bound * tanh  # F2
    z = x * np.exp(log_scale) + shift  # F3
    log_det = log_scale.sum(axis=1)  # F4
    return z, log_det, tanh


def affine_inverse(z, params, bound):
    """x = (z - shift) exp(-s); log_det = -sum_j s_j. Returns x, log_det and tanh(raw)."""
    d = z.shape[1]
    shift, raw = params[:, :d], params[:, d:]
    tanh = np.tanh(raw)
    log_scale = bound * tanh
    x = (z - shift) * np.exp(-log_scale)
    return x, -log_scale.sum(axis=1), tanh


def affine_backward(dz, dlog_det, x, tanh, bound, dbound):
    """Gradient of affine_forward. Returns dx, dparams (B, 2d); dbound (d,) is added to."""
    scale = np.exp(bound * tanh)
    dx = dz * scale  # F3 in x
    dlog_scale = dx * x + dlog_det[:, None]  # F3 and F4 in s
    dbound += (dlog_scale * tanh).sum(axis=0)  # F2 in bound
    draw = dlog_scale * bound * (1 - tanh * tanh)  # F2, F1
    return dx, np.concatenate([dz, draw], axis=1)


def affine_inverse_backward(dx, dlog_det, x, tanh, bound, dbound):
    """Gradient of affine_inverse, whose log_det is -sum s. Returns dz, dparams (B, 2d)."""
    dz = dx * np.exp(-bound * tanh)
    dlog_scale = -dx * x - dlog_det[:, None]  # x = (z - shift) e^-s, so dx/ds = -x
    dbound += (dlog_scale * tanh).sum(axis=0)
    draw = dlog_scale * bound * (1 - tanh * tanh)
    return dz, np.concatenate([-dz, draw], axis=1)
