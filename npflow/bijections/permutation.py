"""A fixed permutation of the features.

Map       z_j = x_{order[j]}
Inverse   x_{order[j]} = z_j
Log-det   0: |det| of a permutation matrix is 1
Gradient  dx_{order[j]} = dz_j; dlog_det has no effect
Source    NICE, arXiv:1410.8516, section 3.2 (halves); Glow, arXiv:1807.03039, section 3.2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npflow import random
from npflow.bijections.bijection import Bijection
from npflow.errors import ConfigurationError


class PermutationCache(NamedTuple):
    """The gradient of a permutation needs nothing."""


@dataclass(eq=False)
class Permutation(Bijection):
    """z = x[:, order]. Raises ConfigurationError unless order holds each of 0..D-1 once."""

    order: tuple[int, ...]

    def __post_init__(self):
        if sorted(self.order) != list(range(len(self.order))):
            raise ConfigurationError("order must hold each index from 0 to its length - 1 once")

    def attached(self):
        order = np.array(self.order, np.int64)
        self._order = self.backend.xp.asarray(order)
        self._undo = self.backend.xp.asarray(np.argsort(order))

    def forward(self, x, context=None):
        log_det = self.backend.xp.zeros(len(x), x.dtype)
        return self.backend.kernels.permute(x, self._order), log_det, PermutationCache()

    def inverse(self, z, context=None):
        log_det = self.backend.xp.zeros(len(z), z.dtype)
        return self.backend.kernels.permute(z, self._undo), log_det, PermutationCache()

    def backward(self, cache, dz, dlog_det):
        return self.backend.kernels.permute(dz, self._undo), None

    def inverse_backward(self, cache, dx, dlog_det):
        return self.backend.kernels.permute(dx, self._order), None


def reverse(features: int) -> Permutation:
    """The features in reversed order."""
    return Permutation(tuple(range(features))[::-1])


def swap_halves(features: int) -> Permutation:
    """The second half before the first (the first half is the larger one if features is odd)."""
    first = (features + 1) // 2
    return Permutation((*range(first, features), *range(first)))


def shuffle(features: int, seed: int) -> Permutation:
    """A random order, fixed by the seed."""
    order = random.permutation(features, seed, random.Stream.PERMUTATION, 0)
    return Permutation(tuple(int(i) for i in order))
