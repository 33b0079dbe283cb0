"""Elementwise maps given their parameters, shared by couplings and autoregressive flows."""

from .additive import Additive
from .affine import Affine
from .elementwise import ElementwiseMap
from .rational_quadratic import RationalQuadratic

__all__ = ["Additive", "Affine", "ElementwiseMap", "RationalQuadratic"]
