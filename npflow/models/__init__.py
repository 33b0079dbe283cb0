"""Builders of whole flows, with the papers' configurations by name."""

from .glow import glow
from .made import MADE_CONFIGURATIONS, ensemble_log_prob, made
from .maf import MAF_CONFIGURATIONS, iaf, maf
from .nice import NICE_CONFIGURATIONS, nice
from .realnvp import REALNVP_CONFIGURATIONS, realnvp
from .realnvp_multiscale import REALNVP_MULTISCALE_CONFIGURATIONS, realnvp_multiscale
from .spline import SPLINE_CONFIGURATIONS, spline_coupling

__all__ = [
    "MADE_CONFIGURATIONS",
    "MAF_CONFIGURATIONS",
    "NICE_CONFIGURATIONS",
    "REALNVP_CONFIGURATIONS",
    "REALNVP_MULTISCALE_CONFIGURATIONS",
    "SPLINE_CONFIGURATIONS",
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
