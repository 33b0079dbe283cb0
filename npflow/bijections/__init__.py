"""Invertible layers: see bijection.py for the protocol."""

from .autoregressive import MaskedAutoregressive
from .batchnorm import BatchNorm
from .bijection import Bijection
from .chain import Chain, Memory
from .coupling import Coupling
from .diagonal import Diagonal
from .inverse import Inverse
from .masks import checkerboard, half, parity
from .permutation import Permutation, reverse, shuffle, swap_halves
from .planar import Planar
from .preprocess import Logit, binarize, dequantize
from .radial import Radial
from .scale import Scale

__all__ = [
    "BatchNorm",
    "Bijection",
    "Chain",
    "Coupling",
    "Diagonal",
    "Inverse",
    "Logit",
    "MaskedAutoregressive",
    "Memory",
    "Permutation",
    "Planar",
    "Radial",
    "Scale",
    "binarize",
    "checkerboard",
    "dequantize",
    "half",
    "parity",
    "reverse",
    "shuffle",
    "swap_halves",
]
