"""Normalizing flows on NumPy and CuPy, every derivative written by hand."""

from npflow import bijections, distributions, elementwise, models, networks
from npflow.backend import Backend, get_backend
from npflow.bijections import Memory, binarize, dequantize
from npflow.dequantization import VariationalDequantization
from npflow.flow import Flow
from npflow.params import ParamStore

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Flow",
    "Memory",
    "ParamStore",
    "VariationalDequantization",
    "bijections",
    "binarize",
    "dequantize",
    "distributions",
    "elementwise",
    "get_backend",
    "models",
    "networks",
]
