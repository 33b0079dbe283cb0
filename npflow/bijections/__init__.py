"""Invertible layers: see bijection.py for the protocol."""

from .actnorm import ActNorm
from .autoregressive import MaskedAutoregressive
from .batchnorm import BatchNorm
from .bijection import Bijection
from .chain import Chain, Memory
from .conv1x1 import InvertibleConv1x1
from .coupling import Coupling
from .diagonal import Diagonal
from .factor_out import FactorOut
from .image_coupling import ImageCoupling
from .inverse import Inverse
from .masks import checkerboard, checkerboard_channels, half, parity
from .permutation import Permutation, reverse, shuffle, swap_halves
from .planar import Planar
from .preprocess import Logit, binarize, dequantize
from .radial import Radial
from .reshape import Reshape
from .scale import Scale
from .squeeze import Squeeze

__all__ = [
    "ActNorm",
    "BatchNorm",
    "Bijection",
    "Chain",
    "Coupling",
    "Diagonal",
    "FactorOut",
    "ImageCoupling",
    "Inverse",
    "InvertibleConv1x1",
    "Logit",
    "MaskedAutoregressive",
    "Memory",
    "Permutation",
    "Planar",
    "Radial",
    "Reshape",
    "Scale",
    "Squeeze",
    "binarize",
    "checkerboard",
    "checkerboard_channels",
    "dequantize",
    "half",
    "parity",
    "reverse",
    "shuffle",
    "swap_halves",
]
