"""Builders of whole flows, with the papers' configurations by name."""

from .nice import NICE_CONFIGURATIONS, nice
from .realnvp import REALNVP_CONFIGURATIONS, realnvp

__all__ = ["NICE_CONFIGURATIONS", "REALNVP_CONFIGURATIONS", "nice", "realnvp"]
