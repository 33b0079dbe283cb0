"""Conditioner networks: forward and hand-written backward."""

from .made import MADE
from .mlp import MLP

__all__ = ["MADE", "MLP"]
