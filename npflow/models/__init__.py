"""Builders of whole flows, with the papers' configurations by name."""

from .dequantizer import dequantizer
from .glow import GLOW_CONFIGURATIONS, glow
from .made import MADE_CONFIGURATIONS, ensemble_log_prob, made
from .maf import MAF_CONFIGURATIONS, iaf, maf
from .nice import NICE_CONFIGURATIONS, nice
from .realnvp import REALNVP_CONFIGURATIONS, realnvp
from .realnvp_multiscale import REALNVP_MULTISCALE_CONFIGURATIONS, realnvp_multiscale
from .spline import SPLINE_CONFIGURATIONS, spline_coupling

__all__ = [
    "GLOW_CONFIGURATIONS",
    "MADE_CONFIGURATIONS",
    "MAF_CONFIGURATIONS",
    "NICE_CONFIGURATIONS",
    "REALNVP_CONFIGURATIONS",
    "REALNVP_MULTISCALE_CONFIGURATIONS",
    "SPLINE_CONFIGURATIONS",
    "dequantizer",
    "ensemble_log_prob",
    "glow",
    "iaf",
    "made",
    "maf",
    "nice",
    "realnvp",
    "realnvp_multiscale",
    "spline_coupling",
]
