"""Regions of a scan: the box around the target, and the cube around a nodule, augmented in one interpolation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, SpatialCrop, SpatialResample

from med3d_ext.errors import InputError
from med3d_ext.transforms.sampling import axis_spacing, needed_part, rotation_matrix, target_box, to_ras, window_grid


class CropTargetd(MapTransform):
    """Crop volumes to the box around the label's foreground and a margin: what a first stage without error hands on.

    The box is cut at the volume's faces. A label without foreground leaves the whole volume.

    Args:
        keys: keys of channel-first volumes of one geometry.
        label_key: key of the label whose foreground is the target. Defaults to `label`.
        margin_mm: margin on each side (mm). Defaults to 20.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label", margin_mm: float = 20.0) -> None:
        super().__init__(keys)
        self.label_key, self.margin_mm = label_key, margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = item[self.label_key]
        box = target_box(label)
        if box is not None:
            margin = np.ceil(self.margin_mm / axis_spacing(label.affine.numpy())).astype(int)
            crop = SpatialCrop(
                roi_start=np.maximum(box[0] - margin, 0), roi_end=np.minimum(box[1] + margin, label.shape[1:])
            )
            for key in self.key_iterator(item):
                item[key] = crop(item[key])
        return item


class CropCubed(MapTransform):
    """Cut a cube of ``cube_mm`` around a point, in RAS order, resampled to ``spatial_size`` voxels.

    The point is the item's ``center`` (x, y, z in mm, RAS), else the image's middle. An item with ``centers`` becomes
    a list of items, one per center, each with its ``center`` and, from ``names``, its ``name``: one scan is loaded once
    for all its nodules. What lies outside of the image repeats its border.

    Args:
        keys: keys of channel-first volumes.
        spatial_size: size of the grid.
        cube_mm: edge of the cube (mm).

    Raises:
        InputError: a center lies outside of the image.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], cube_mm: float) -> None:
        super().__init__(keys)
        self.spatial_size, self.cube_mm = list(spatial_size), cube_mm
        self.resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=False, dtype="float32")

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        item = dict(data)
        if "centers" not in item:
            return self._cut(item)
        centers = item.pop("centers")
        names = item.pop("names", [str(number) for number in range(len(centers))])
        points = torch.as_tensor(centers, dtype=torch.float64)
        return [self._cut({**item, "center": point, "name": name}) for point, name in zip(points, names)]

    def _cut(
        self, item: dict[Hashable, Any], shift: Any = 0.0, zoom: float = 1.0, axes: np.ndarray | None = None
    ) -> dict[Hashable, Any]:
        for key in self.key_iterator(item):
            image, center = item[key], item.get("center")
            affine, shape = np.asarray(image.affine, dtype=float), image.shape[1:]
            if center is None:
                ras, ras_shape = to_ras(affine, shape)
                middle = ras_shape * axis_spacing(affine @ ras) / 2
            elif (middle := point_from_corner(affine, shape, center)) is None:
                place, name = [round(float(value), 3) for value in center], image.meta.get("filename_or_obj")
                raise InputError(f"center {place} (mm, RAS) is outside '{name}'; correct it.")
            extent = np.full(3, self.cube_mm / zoom)
            grid = window_grid(affine, shape, self.spatial_size, middle + shift, extent, axes)
            part = needed_part(image, grid, self.spatial_size)
            item[key] = self.resample(part, dst_affine=torch.as_tensor(grid), spatial_size=self.spatial_size)
        return item


class RandCropCubed(RandomizableTransform, CropCubed):
    """:class:`CropCubed` with random translation, rotation, scale and flips, in the same single interpolation.

    A nodule has no up or down, so it may be mirrored along every axis. Translation and scale are small: where the cube
    is and how large a nodule is in it belong to what is learned.

    Args:
        keys: keys of channel-first volumes of one geometry.
        spatial_size: size of the grid.
        cube_mm: edge of the cube (mm).
        translate_mm: largest shift along each axis (mm).
        rotate_degrees: largest rotation about each axis.
        scale: smallest and largest magnification.
        flip: mirror each axis in half of the draws.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        cube_mm: float,
        translate_mm: float = 2.0,
        rotate_degrees: float = 15.0,
        scale: Sequence[float] = (0.9, 1.1),
        flip: bool = True,
    ) -> None:
        CropCubed.__init__(self, keys, spatial_size, cube_mm)
        RandomizableTransform.__init__(self, prob=1.0)
        self.translate_mm, self.rotate_degrees, self.scale, self.flip = translate_mm, rotate_degrees, tuple(scale), flip

    def draw(self) -> tuple[np.ndarray, float, np.ndarray]:
        """Shift (mm) of the cube, its magnification, and its axes as columns (3, 3)."""
        shift = self.R.uniform(-self.translate_mm, self.translate_mm, 3)
        zoom = float(self.R.uniform(self.scale[0], self.scale[1]))
        axes = rotation_matrix(np.radians(self.R.uniform(-self.rotate_degrees, self.rotate_degrees, 3)))
        signs = np.where(self.R.uniform(size=3) < 0.5, -1.0, 1.0) if self.flip else np.ones(3)
        return shift, zoom, axes * signs

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self._cut(dict(data), *self.draw())


def point_from_corner(affine: np.ndarray, shape: Sequence[int], point: Sequence[float]) -> np.ndarray | None:
    """A world point (mm, RAS) as mm along an image's axes in RAS order from its first corner; None outside of it."""
    ras, ras_shape = to_ras(affine, shape)
    voxels = np.linalg.solve(affine @ ras, [*map(float, point), 1.0])[:3] + 0.5
    return voxels * axis_spacing(affine @ ras) if ((voxels >= 0) & (voxels <= ras_shape)).all() else None
