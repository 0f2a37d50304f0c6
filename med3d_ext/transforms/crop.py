"""The region around the target as a crop: what a first stage without error would hand on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, SpatialCrop

from med3d_ext.transforms.sampling import axis_spacing, target_box


class CropTargetd(MapTransform):
    """Crop volumes to the box around the label's foreground and a margin, cut at the volume's faces.

    A label without foreground leaves the whole volume.

    Args:
        keys: keys of channel-first volumes of one geometry.
        label_key: key of the label whose foreground is the target. Defaults to `label`.
        margin_mm: margin on each side (mm). Defaults to 20.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label", margin_mm: float = 20.0) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.margin_mm = margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = item[self.label_key]
        box = target_box(label)
        if box is None:
            return item
        margin = np.ceil(self.margin_mm / axis_spacing(label.affine.numpy())).astype(int)
        crop = SpatialCrop(
            roi_start=np.maximum(box[0] - margin, 0), roi_end=np.minimum(box[1] + margin, label.shape[1:])
        )
        for key in self.key_iterator(item):
            item[key] = crop(item[key])
        return item
