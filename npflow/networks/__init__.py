"""Conditioner networks: forward and hand-written backward."""

from .mlp import MLP

__all__ = ["MLP"]
