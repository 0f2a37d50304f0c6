"""Resampling to the median spacing of an item's domain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Spacing, SpatialResample
from monai.utils import ensure_tuple_rep

from med3d_ext.transforms.per_domain import value_of


class MedianSpacingd(MapTransform, InvertibleTransform):
    """MONAI's Spacing with the median spacing of the item's domain (paper, section 3.1).

    Equation (1) of the paper is printed inverted: of s voxels of sp mm become s * sp / sp_med voxels of sp_med mm.
    Axes keep their order and direction. ``monai.transforms.Invertd`` leads back to the image's own grid. Other keys
    of the item stay as they are, also those that begin like one of ``keys``.

    Args:
        keys: keys of channel-first volumes.
        spacing: median spacing (mm) along x, y, z, or a table from an item's ``domain`` to it, as
            ``facts.json`` holds them. A component <= 0 keeps the image's own.
        mode: interpolation per key: "bilinear" for images, "nearest" for labels.
        padding_mode: what lies outside the volume, per key.
        allow_missing_keys: pass over absent keys.

    Raises:
        ValueError: when ``spacing`` has another number of components than three.
        KeyError: when the table lacks the item's domain.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | Mapping[str, Sequence[float]],
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for value in spacing.values() if isinstance(spacing, Mapping) else [spacing]:
            if len(value) != 3:
                raise ValueError(f"spacing must have three components (mm), got {value!r}.")
        self.spacing = spacing
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.padding_mode = ensure_tuple_rep(padding_mode, len(self.keys))
        # One for all domains: the inverse is asked for without the item's domain.
        self.resample = SpatialResample(align_corners=False, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        spacing = Spacing(pixdim=value_of("spacing", self.spacing, item))
        spacing.sp_resample = self.resample
        for key, mode, padding_mode in self.key_iterator(item, self.mode, self.padding_mode):
            item[key] = spacing(item[key], mode=mode, padding_mode=padding_mode)
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.resample.inverse(item[key])
        return item
