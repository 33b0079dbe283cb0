"""Coupling of an image: some channels, or pixels of a checkerboard, decide how others are mapped.

Map       x_a, x_b = split(x)                               F1
          params = conditioner(x_a, context)                F2
          z_b, log_dets = map(x_b; params), pixel by pixel  F3
          log_det = sum of the log_dets of an image         F4
          z = merge(x_a, z_b)                               F5
Inverse   x_b = map^-1(z_b; params): the kept part is the same in x and z, so params are too
Log-det   the Jacobian is block-triangular with an identity block: log|det J| = log_det of the map
Gradient  dz_a, dz_b = split(dz)                            B5
          every pixel of an image gets its dlog_det         B4
          dx_b, dparams = map.backward(dz_b, dlog_det)      B3
          dx_a = dz_a + conditioner.backward(dparams)       B2
          dx = merge(dx_a, dx_b)                            B1
Source    RealNVP, arXiv:1605.08803, section 3.4-3.6; Glow, arXiv:1807.03039, table 1

The map is that of one pixel, with the same learned constants everywhere; to its kernels an image is
H W rows. With a checkerboard the conditioner sees the whole image with zeros in the pixels that are
transformed, and its outputs there are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npflow.bijections import masks
from npflow.bijections.bijection import Bijection
from npflow.bijections.reshape import check_shape
from npflow.elementwise.elementwise import ElementwiseMap
from npflow.errors import ConfigurationError
from npflow.networks.conv import ImageNetwork


class ImageCouplingCache(NamedTuple):
    conditioner: Any  # the conditioner's cache
    map: Any  # the map's cache


@dataclass(eq=False)
class ImageCoupling(Bijection):
    """Maps a part of (B, H, W, C) by `map`, with parameters computed from the rest.

    shape       : (H, W, C)
    kept        : the indices of the channels that pass unchanged; or "checkerboard": the pixels
                  with i + j even do, or "checkerboard-flipped": those with i + j odd
    map         : an elementwise map over the transformed channels of a pixel
    conditioner : an image network from the kept channels (all of them with a checkerboard) to
                  map.parameters_per_feature times the transformed ones

    Raises ConfigurationError if these do not fit together; ShapeError for an x of another shape.
    """

    shape: tuple[int, int, int]
    kept: tuple[int, ...] | str
    map: ElementwiseMap
    conditioner: ImageNetwork

    def __post_init__(self):
        height, width, channels = self.shape
        self._checkerboard = isinstance(self.kept, str)
        if isinstance(self.kept, str):
            if self.kept not in ("checkerboard", "checkerboard-flipped"):
                raise ConfigurationError(
                    f"unknown mask {self.kept!r}; expected channels, or checkerboard or "
                    "checkerboard-flipped"
                )
            if height * width < 2:
                raise ConfigurationError("one pixel has no checkerboard")
            kept: tuple[int, ...] = masks.checkerboard(height, width, self.kept.endswith("flipped"))
            self._positions = height * width
            inputs = transformed = channels
        else:
            kept = self.kept
            self._positions = channels
            inputs, transformed = len(self.kept), channels - len(self.kept)
            if not 0 < len(set(kept) & set(range(channels))) == len(kept) < channels:
                raise ConfigurationError(
                    f"kept is {kept} for {channels} channels; expected different ones from 0 to "
                    f"{channels - 1} that leave a channel to transform"
                )
        self._kept_positions = kept
        outputs = transformed * self.map.parameters_per_feature
        network = self.conditioner
        if network.inputs != inputs or network.outputs != outputs:
            raise ConfigurationError(
                f"the conditioner maps {network.inputs} to {network.outputs} channels; "
                f"this coupling needs {inputs} to {outputs}"
            )
        if self.map.features != transformed:
            raise ConfigurationError(
                f"the map is over {self.map.features} features; expected the {transformed} "
                "transformed channels of a pixel"
            )

    def attached(self):
        transformed = np.setdiff1d(np.arange(self._positions), self._kept_positions)
        kept = np.array(self._kept_positions)
        width = self.shape[2] if self._checkerboard else 1
        self._kept = self._indices(kept, width)
        self._transformed = self._indices(transformed, width)
        if self._checkerboard:
            width *= self.map.parameters_per_feature
            self._ignored = self._indices(kept, width)  # of the conditioner's outputs
            self._used = self._indices(transformed, width)

    def _indices(self, positions, width):
        """The indices of all numbers at these positions of `width` numbers each, on the device."""
        indices = positions[:, None] * width + np.arange(width)
        return self.backend.xp.asarray(indices.ravel().astype(np.int64))

    def forward(self, x, context=None):
        x_a, x_b = self._split(x)  # F1
        params, conditioner_cache = self._condition(x_a, context)  # F2
        z_b, log_dets, map_cache = self.map.forward(x_b, params)  # F3
        log_det = log_dets.reshape(len(x), -1).sum(axis=1)  # F4
        z = self._merge(x_a, z_b)  # F5
        return z, log_det, ImageCouplingCache(conditioner_cache, map_cache)

    def inverse(self, z, context=None):
        x_a, z_b = self._split(z)
        params, conditioner_cache = self._condition(x_a, context)
        x_b, log_dets, map_cache = self.map.inverse(z_b, params)
        log_det = log_dets.reshape(len(z), -1).sum(axis=1)
        return self._merge(x_a, x_b), log_det, ImageCouplingCache(conditioner_cache, map_cache)

    def backward(self, cache, dz, dlog_det):
        return self._backward(cache, dz, dlog_det, self.map.backward)

    def inverse_backward(self, cache, dx, dlog_det):
        return self._backward(cache, dx, dlog_det, self.map.inverse_backward)

    def _backward(self, cache, dz, dlog_det, map_backward):
        dz_a, dz_b = self._split(dz)  # B5
        dlog_dets = self.backend.xp.repeat(dlog_det, len(dz_b) // len(dz))  # B4
        dx_b, dparams = map_backward(cache.map, dz_b, dlog_dets)  # B3
        dx_a, dcontext = self._condition_backward(cache.conditioner, dparams, len(dz_a))  # B2
        dx_b = dx_b.reshape(len(dz_a), -1)
        dx = self.backend.kernels.merge_add(dx_a, dz_a, dx_b, self._kept, self._transformed)
        return dx.reshape(dz.shape), dcontext  # B1

    def _rows(self, x):
        """An image as one row of pixels for a checkerboard, else as many rows of channels."""
        check_shape(self, x, self.shape)
        return x.reshape(len(x), -1) if self._checkerboard else x.reshape(-1, self.shape[2])

    def _split(self, x):
        """The kept part, as _rows; and the transformed one as rows of pixels."""
        x_a, x_b = self.backend.kernels.split(self._rows(x), self._kept, self._transformed)
        return x_a, x_b.reshape(-1, self.map.features)

    def _merge(self, x_a, x_b):
        x_b = x_b.reshape(len(x_a), -1)
        x = self.backend.kernels.merge(x_a, x_b, self._kept, self._transformed)
        return x.reshape(-1, *self.shape)

    def _condition(self, x_a, context):
        """The map's parameters for each transformed pixel, and the conditioner's cache."""
        if self._checkerboard:
            zeros = self.backend.xp.zeros((len(x_a), len(self._transformed)), x_a.dtype)
            seen = self._merge(x_a, zeros)
        else:
            seen = x_a.reshape(-1, *self.shape[:2], len(self._kept))
        params, cache = self.conditioner.forward(seen, context)
        if self._checkerboard:
            params = self.backend.kernels.permute(params.reshape(len(x_a), -1), self._used)
        return params.reshape(-1, self.map.parameters_per_feature * self.map.features), cache

    def _condition_backward(self, cache, dparams, rows):
        """What comes back through the conditioner, as `rows` rows of x_a, and dcontext."""
        image = (-1, *self.shape[:2], self.conditioner.outputs)
        if self._checkerboard:
            dparams = dparams.reshape(rows, -1)
            zeros = self.backend.xp.zeros((rows, len(self._ignored)), dparams.dtype)
            dparams = self.backend.kernels.merge(zeros, dparams, self._ignored, self._used)
        dseen, dcontext = self.conditioner.backward(cache, dparams.reshape(image))
        if self._checkerboard:
            dx_a, _ = self._split(dseen)
        else:
            dx_a = dseen.reshape(rows, -1)
        return dx_a, dcontext
