"""One resample per sample: orientation, spacing, crop, rotation, translation, scale and resize composed into one grid.

A grid is an affine (output voxel to world, mm) with a size. Every step of the usual chain only changes the grid, so the
chain is computed on 4 x 4 matrices and the voxels are interpolated once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    RandomizableTransform,
    Spacing,
    SpatialResample,
    create_rotate,
)
from monai.utils import ensure_tuple_rep

from med3d_ext.transforms.values import value_of

SMALLEST_PART = 0.2
"""Smallest part of a volume without target, as a share of each axis."""
NO_TARGET = ([0, 0, 0], [0, 0, 0])
"""The box of a label without foreground in an item's ``target_box``; None says the same."""
Window = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Center and extent (mm) of a crop, and its axes as columns (3, 3)."""


def target_box(label: torch.Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """First and one-past-last voxel of the foreground of ``label`` (1, X, Y, Z); None when it has none."""
    foreground = label[0] > 0
    corners = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        hit = torch.nonzero(foreground.any(dim=others[1]).any(dim=others[0]))
        if hit.numel() == 0:
            return None
        corners.append((int(hit[0]), int(hit[-1]) + 1))
    first, last = zip(*corners)
    return np.array(first), np.array(last)


def box_to_ras(box: Any, ras: np.ndarray) -> np.ndarray:
    """A box (first and one-past-last stored voxel) as two corners (2, 3) in voxels of the RAS order."""
    inverse = np.linalg.inv(ras)
    voxels = np.stack([np.asarray(box[0], float), np.asarray(box[1], float) - 1])
    mapped = voxels @ inverse[:3, :3].T + inverse[:3, 3]
    return np.stack([mapped.min(axis=0), mapped.max(axis=0) + 1]).round()


def to_ras(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix from voxels in RAS order to the stored voxels, and the shape in RAS order.

    The axes stay the image's own: an oblique image is permuted and flipped, not rotated.
    """
    orientation = nibabel.orientations.io_orientation(affine)
    matrix = nibabel.orientations.inv_ornt_aff(orientation, shape)
    return matrix, np.array(shape)[np.argsort(orientation[:, 0])]


def axis_spacing(affine: np.ndarray) -> np.ndarray:
    """Spacing (mm) of the axes of an affine."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def rotation_matrix(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation by three angles (radians) about the three axes, as a matrix (3, 3)."""
    return np.asarray(create_rotate(3, tuple(angles)))[:3, :3]


def window_grid(
    affine: np.ndarray,
    shape: Sequence[int],
    spatial_size: Sequence[int],
    center: np.ndarray,
    extent: np.ndarray,
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """The affine of a grid of ``spatial_size`` voxels (RAS order) that covers a window of an image.

    Args:
        affine: the image's affine (4, 4), as ``shape`` is its shape.
        center: center of the window, mm along the image's axes in RAS order from the corner of the first voxel.
        extent: size of the window, mm along its axes.
        rotation: the window's axes as columns (3, 3). Defaults to None: the image's axes.
    """
    ras, _ = to_ras(affine, shape)
    spacing, size = axis_spacing(affine @ ras), np.asarray(spatial_size)
    matrix = np.eye(4)
    axes = np.eye(3) if rotation is None else rotation
    matrix[:3, :3] = (axes * (np.asarray(extent) / size)) / spacing[:, None]
    matrix[:3, 3] = center / spacing - 0.5 - matrix[:3, :3] @ (size / 2 - 0.5)
    return affine @ ras @ matrix


def needed_part(volume: MetaTensor, grid: np.ndarray, size: Sequence[int]) -> MetaTensor:
    """The part of ``volume`` that a grid samples, as float32: the rest of a memory-mapped file is not read."""
    affine = volume.affine.numpy()
    corners = np.stack(np.meshgrid(*[(0, extent - 1) for extent in size], indexing="ij"), axis=-1).reshape(-1, 3)
    matrix = np.linalg.inv(affine) @ grid
    reached = corners @ matrix[:3, :3].T + matrix[:3, 3]
    limit = np.array(volume.shape[1:])
    first = np.clip(np.floor(reached.min(axis=0)).astype(int) - 1, 0, limit - 2)
    last = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 2, first + 2, limit)
    part = volume.as_tensor()[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]].float()
    shift = np.eye(4)
    shift[:3, 3] = first
    meta = {key: value for key, value in volume.meta.items() if key != "affine"}
    return MetaTensor(part, affine=torch.as_tensor(affine @ shift), meta=meta)


def size_of(spatial_size: Sequence[int] | Mapping[str, Sequence[int]], item: Mapping[Any, Any]) -> list[int]:
    """The grid's size for an item: the same for all, or its domain's."""
    return list(value_of("spatial_size", spatial_size, item))


class _Inverting(MapTransform, InvertibleTransform):
    """One MONAI resampler for all keys undoes what it did: the inverse is asked for without the item's domain."""

    resample: SpatialResample

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.resample.inverse(item[key])
        return item


class ResampleToGridd(_Inverting):
    """Resize whole volumes, in RAS order, to one grid: the test-time counterpart of :class:`RandTargetCropd`.

    One interpolation, inverted by ``monai.transforms.Invertd`` onto the image's own grid.

    Args:
        keys: keys of channel-first volumes.
        spatial_size: size of the grid, or a table from an item's ``domain`` to its size.
        mode: interpolation per key: "bilinear" for images, "nearest" for labels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | Mapping[str, Sequence[int]],
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = spatial_size
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.resample = SpatialResample(padding_mode="border", align_corners=False, dtype="float32")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        size = size_of(self.spatial_size, item)
        for key, mode in self.key_iterator(item, self.mode):
            affine, shape = item[key].affine.numpy(), item[key].shape[1:]
            ras, ras_shape = to_ras(affine, shape)
            extent = ras_shape * axis_spacing(affine @ ras)
            grid = window_grid(affine, shape, size, extent / 2, extent)
            item[key] = self.resample(item[key], dst_affine=torch.as_tensor(grid), spatial_size=size, mode=mode)
        return item


class MedianSpacingd(_Inverting):
    """MONAI's Spacing with the median spacing of the item's domain (paper, section 3.1).

    Equation (1) of the paper is printed inverted: of s voxels of sp mm become s * sp / sp_med voxels of sp_med mm.
    Axes keep their order and direction. Other keys of the item stay as they are, also those that begin like one of
    ``keys``.

    Args:
        keys: keys of channel-first volumes.
        spacing: median spacing (mm) along x, y, z, or a table from an item's ``domain`` to it, as
            ``facts.json`` holds them. A component <= 0 keeps the image's own.
        mode: interpolation per key: "bilinear" for images, "nearest" for labels.
        padding_mode: what lies outside the volume, per key.

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
        self.resample = SpatialResample(align_corners=False, dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        spacing = Spacing(pixdim=value_of("spacing", self.spacing, item))
        spacing.sp_resample = self.resample
        for key, mode, padding_mode in self.key_iterator(item, self.mode, self.padding_mode):
            item[key] = spacing(item[key], mode=mode, padding_mode=padding_mode)
        return item


class RandTargetCropd(RandomizableTransform, MapTransform):
    """Random crop that holds the target, with translation, rotation and scale, in one interpolation.

    Paper, sections 3.1 and 4.1: a crop between twice the target's bounding box and the whole volume, translation within
    10 % of the box, rotation within 5 degrees, scale 0.8 to 1.2. Scale is limited where it would cut the target. A
    label without foreground gives the whole volume, or a part of it (``part_share``).

    Args:
        keys: keys of channel-first volumes of one geometry.
        label_key: key of the label whose foreground is the target. An item may carry its box as ``target_box``, which
            holds as long as no transform has moved the label, and is taken out of the item.
        spatial_size: size of the grid (RAS order), or a table from an item's ``domain`` to its size.
        target_factor: smallest crop in multiples of the target's box; None always takes the whole volume.
        margin_mm: what the smallest crop has around that on each side (mm), as a cascade's region of interest has.
        translate: largest shift as a share of the target's box.
        rotate_degrees: largest rotation about each axis.
        scale: smallest and largest magnification.
        mode: interpolation per key.
        skew: power of the uniform draw between the smallest crop and the whole volume; above 1 prefers small crops.
        whole_share: share of the crops that take the whole volume along all axes.
        keep_target: move a crop back where its translation would cut the target.
        part_share: share of the volumes without target of which a part anywhere is taken, a fifth of each axis or more:
            what a first stage in error would hand on.
        spacing: voxel size (mm, RAS order) of crops that cover ``spatial_size`` times it, of whatever part of the
            target's box they hold: one number, three, or a table from an item's ``domain`` to either. They may reach
            beyond the volume, where its border is repeated. Defaults to None: all crops are the paper's.
        spacing_share: share of the crops of that voxel size where ``spacing`` is given; the others are the paper's,
            which whole volumes on ``spatial_size`` at test time take after.
        anywhere_share: share of the crops of that voxel size that may lie anywhere in the volume. Around the target
            alone, a network never sees what else there is at this size, and finds the target in it.

    Raises:
        ValueError: a spacing is not positive, or a share of them is not from 0 to 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | Mapping[str, Sequence[int]],
        label_key: str = "label",
        target_factor: float | None = 2.0,
        margin_mm: float = 0.0,
        translate: float = 0.1,
        rotate_degrees: float = 5.0,
        scale: Sequence[float] = (0.8, 1.2),
        mode: str | Sequence[str] = ("bilinear", "nearest"),
        skew: float = 1.0,
        whole_share: float = 0.0,
        keep_target: bool = True,
        part_share: float = 0.0,
        spacing: float | Sequence[float] | Mapping[str, Any] | None = None,
        spacing_share: float = 1.0,
        anywhere_share: float = 0.0,
    ) -> None:
        for voxel in spacing.values() if isinstance(spacing, Mapping) else [spacing]:
            if voxel is not None and (np.shape(voxel) not in ((), (3,)) or not np.all(np.asarray(voxel, float) > 0)):
                raise ValueError(f"spacing must be one or three positive numbers (mm), got {voxel!r}.")
        for name, share in (("spacing_share", spacing_share), ("anywhere_share", anywhere_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {share!r}.")
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.spatial_size, self.label_key = spatial_size, label_key
        self.target_factor, self.margin_mm, self.translate = target_factor, margin_mm, translate
        self.rotate_degrees, self.scale, self.skew = rotate_degrees, tuple(scale), skew
        self.whole_share, self.keep_target, self.part_share = whole_share, keep_target, part_share
        self.spacing, self.spacing_share, self.anywhere_share = spacing, spacing_share, anywhere_share
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.resample = SpatialResample(padding_mode="border", align_corners=False, dtype="float32")

    def draw_window(self, volume: np.ndarray, box: np.ndarray | None, extent: np.ndarray | None = None) -> Window:
        """Draw a window in a volume of some extent (mm, RAS order), around the corners (2, 3) of the target's box.

        ``extent`` is that of a window of fixed voxel size, before the scale (mm).
        """
        fixed = extent if extent is not None and self.R.uniform() < self.spacing_share else None
        axes = rotation_matrix(np.radians(self.R.uniform(-self.rotate_degrees, self.rotate_degrees, 3)))
        zoom = self.R.uniform(self.scale[0], self.scale[1])
        if fixed is not None:  # along each axis it holds the target's box, or lies in it, and in the volume
            window = fixed / zoom
            if box is not None and self.anywhere_share and self.R.uniform() < self.anywhere_share:
                box = None
            first, last = (np.zeros(3), volume) if box is None else box
            ends = np.sort([first + window / 2, last - window / 2], axis=0)
            low, high = np.clip(ends, *np.sort([window / 2, volume - window / 2], axis=0))
            return low + self.R.uniform(size=3) * (high - low), window, axes
        share, place, shift = self.R.uniform(size=3) ** self.skew, self.R.uniform(size=3), self.R.uniform(-1, 1, 3)
        if self.whole_share and self.R.uniform() < self.whole_share:
            share = np.ones(3)
        smallest = volume
        if box is None:
            if self.part_share and self.R.uniform() < self.part_share:
                smallest = SMALLEST_PART * volume
        elif self.target_factor is not None:
            smallest = np.minimum(self.target_factor * (box[1] - box[0]) + 2 * self.margin_mm, volume)
        crop = smallest + share * (volume - smallest)
        low, high = np.minimum(crop / 2, volume / 2), np.maximum(volume - crop / 2, volume / 2)
        if box is None:
            return low + place * (high - low), crop / zoom, axes
        # In the frame of the window the target reaches |axes^T| box; what is left on each side is the center's play.
        first, last = box
        middle, reach = (first + last) / 2, np.abs(axes.T) @ (last - first)
        window = crop / min(zoom, float(np.min(crop / reach)))
        play = (window - reach) / 2
        center = np.clip(low, middle - play, middle + play)
        center = center + place * (np.clip(high, middle - play, middle + play) - center)
        center = center + shift * self.translate * (last - first)
        if self.keep_target:
            center = middle + axes @ np.clip(axes.T @ (center - middle), -play, play)
        return center, window, axes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        size = size_of(self.spatial_size, item)
        voxel = value_of("spacing", self.spacing, item)
        extent = None if voxel is None else np.asarray(size) * np.asarray(voxel, float)
        affine, shape = item[self.keys[0]].affine.numpy(), item[self.keys[0]].shape[1:]
        ras, ras_shape = to_ras(affine, shape)
        spacing = axis_spacing(affine @ ras)
        is_known = "target_box" in item and not getattr(item.get(self.label_key), "applied_operations", None)
        box = item.pop("target_box", None)
        if not is_known:
            box = target_box(item[self.label_key])
        elif box is not None and np.array_equal(*box):
            box = None
        corners = None if box is None else box_to_ras(box, ras) * spacing
        window = self.draw_window(ras_shape * spacing, corners, extent)
        grid = window_grid(affine, shape, size, *window)
        for key, mode in self.key_iterator(item, self.mode):
            needed = needed_part(item[key], grid, size)
            item[key] = self.resample(needed, dst_affine=torch.as_tensor(grid), spatial_size=size, mode=mode)
        return item
