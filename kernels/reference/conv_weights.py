"""The weights of convolutions from what their layers store: normalised, or with a learned gain.

Shapes: v, weight (..., n) with n output channels; gain, bias, log_gain (n,).
Source: weight normalisation, arXiv:1602.07868, eq. 2 and 3; the gain e^3s of Glow's last layers,
arXiv:1807.03039, section 3.3 and its code.
"""

import numpy as np


def normalized_weight(v, gain):
    """W = gain v / |v|, with |v| of each output channel."""
    return gain * (v / _norm(v))


def normalized_weight_backward(dweight, v, gain, dv, dgain):
    """Gradient of normalized_weight; dv and dgain are added to.

    dgain = sum dW v/|v| over all but the output channels; dv = gain/|v| (dW - v/|v| dgain).
    """
    norm = _norm(v)
    direction = v / norm
    along = _sum(dweight * direction)
    dgain += along
    dv += gain / norm * (dweight - direction * along)


def scaled_weight(weight, bias, log_gain, factor):
    """W = e^(factor log_gain) weight and b = e^(factor log_gain) bias."""
    gain = np.exp(factor * log_gain)
    return gain * weight, gain * bias


def scaled_weight_backward(
    dscaled, dscaled_bias, weight, bias, log_gain, factor, dweight, dbias, dlog_gain
):
    """Gradient of scaled_weight from dW and db; dweight, dbias and dlog_gain are added to."""
    gain = np.exp(factor * log_gain)
    dweight += gain * dscaled
    dbias += gain * dscaled_bias
    dlog_gain += factor * (_sum(dscaled * (gain * weight)) + dscaled_bias * (gain * bias))


def _norm(v):
    return np.sqrt(_sum(v * v))


def _sum(a):
    return a.sum(axis=tuple(range(a.ndim - 1)))
