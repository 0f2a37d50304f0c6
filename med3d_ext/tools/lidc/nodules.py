"""From the outlines of several readers to nodules: their voxels, which marks are one nodule, and cubes of CT around it.

An outline runs through the pixels just outside of the nodule (LIDC's documentation of its XML): what it encloses is
nodule and its own pixels are not. An outline of what is excluded, an air-filled cavity for example, cuts out what it
encloses; its own pixels are not nodule either.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
from scipy import ndimage
from skimage.draw import line

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
from med3d_ext.io.dicom_series import read_series
from med3d_ext.io.files import write_atomically
from med3d_ext.tools.lidc.xml import CHARACTERISTICS, Contour, Mark

SPACING_MM = 1.0  # edge of a cube's voxels
HU_RANGE = (-1024, 3071)
"""What 12-bit CT can hold; scanners fill the corners outside of their round field with lower values."""


# Outlines on the voxels of their scan


def volume_shape(series: DicomSeries) -> tuple[int, int, int]:
    """Voxels of a series along x, y and slices."""
    return (*series.slices[0].shape, len(series.slices))


def mark_voxels(mark: Mark, series: DicomSeries) -> np.ndarray:
    """Voxels of one reader's nodule: sorted flat indices into the :func:`volume_shape` of a sorted, checked series.

    Refused are outlines outside the volume or in a slice that the series lacks, marks without a voxel, and nodules in
    the first or the last slice, where the scan may cut them off.
    """
    shape = volume_shape(series)
    drawn: dict[int, dict[bool, set[int]]] = {}
    for contour in mark.contours:
        number = _slice_number(mark, contour, series)
        if not len(contour.points):
            raise InputError(f"{mark} has an outline without points at z = {contour.z:g} mm; remove it.")
        low, high = contour.points.min(axis=0), contour.points.max(axis=0)
        if (low < 0).any() or (high >= shape[:2]).any():
            raise InputError(
                f"{mark} has an outline outside the volume: x {low[0]} to {high[0]} and y {low[1]} to {high[1]} in a "
                f"slice of {shape[0]}x{shape[1]} ({series.slices[number]}); correct or remove it."
            )
        parts = drawn.setdefault(number, {True: set(), False: set()})
        x, y = np.transpose(enclosed_pixels(contour.points, with_outline=not contour.inclusion))
        parts[contour.inclusion].update(np.ravel_multi_index((x, y, np.full_like(x, number)), shape).tolist())
    voxels = np.array(sorted(set().union(*(parts[True] - parts[False] for parts in drawn.values()))), dtype=np.int64)
    if not voxels.size:
        raise InputError(f"{mark} encloses no voxel; redraw or remove it.")
    # Within a slice an outline is in the image, and so is all that it encloses: only the ends can cut it off.
    for end, name in ((0, "first"), (shape[2] - 1, "last")):
        if (voxels % shape[2] == end).any():
            raise InputError(f"{mark} is in the {name} slice of the scan, which may cut it off; remove it.")
    return voxels


def _slice_number(mark: Mark, contour: Contour, series: DicomSeries) -> int:
    """The slice that an outline was drawn on: by UID, else by position."""
    for number, each in enumerate(series.slices):
        if contour.sop_uid and each.sop_uid == contour.sop_uid:
            return number
    heights = np.array([each.origin[2] for each in series.slices])
    if not math.isnan(contour.z):
        nearest = int(np.abs(heights - contour.z).argmin())
        if abs(heights[nearest] - contour.z) < 0.25 * series.spacing[2]:
            return nearest
    raise InputError(
        f"{mark} has an outline outside the volume, at z = {contour.z:g} mm (slice '{contour.sop_uid}'), and the "
        f"slices are from {heights.min():g} to {heights.max():g} mm; restore the slice or remove the outline."
    )


def enclosed_pixels(points: np.ndarray, with_outline: bool = False) -> np.ndarray:
    """Pixels (m, 2) that a closed outline encloses, perhaps with those that it runs through.

    ``points`` are pixels of the outline in their order, (n, 2); gaps between neighbors are closed by straight lines.
    """
    start = points.min(axis=0)
    corners = points - start
    drawn = np.zeros(corners.max(axis=0) + 1, dtype=bool)
    for one, next_one in zip(corners, np.roll(corners, -1, axis=0)):
        drawn[line(*one, *next_one)] = True
    # Filling holes, and not the polygon's even-odd rule: where an outline touches itself, both sides are enclosed.
    filled = ndimage.binary_fill_holes(drawn)
    return np.argwhere(filled if with_outline else filled & ~drawn) + start


# Which marks are one nodule


@dataclass(frozen=True)
class Outlined:
    """A mark with its voxels: sorted flat indices into the scan."""

    mark: Mark
    voxels: np.ndarray


@dataclass(frozen=True)
class Nodule:
    """One nodule as its readers see it: their marks in the readers' order, and the consensus.

    That is the voxels inside the marks of at least half of these readers.
    """

    members: tuple[Outlined, ...]
    voxels: np.ndarray

    @property
    def readers(self) -> list[int]:
        """The readers who marked it."""
        return [each.mark.reader for each in self.members]

    def ratings(self, characteristic: str) -> list[int]:
        """The readers' ratings, in their order, without those that are missing."""
        return [each.mark.ratings[characteristic] for each in self.members if characteristic in each.mark.ratings]

    def median_ratings(self) -> dict[str, float | None]:
        """Median of the readers per characteristic; of an even number it may lie half-way. None where nobody rated."""
        rated = {name: self.ratings(name) for name in CHARACTERISTICS}
        return {name: float(median(values)) if values else None for name, values in rated.items()}


def volume_mm3(voxels: np.ndarray, spacing: Sequence[float]) -> float:
    """Volume of voxels of a size in mm."""
    return voxels.size * math.prod(spacing)


def cluster_marks(marks: Sequence[Outlined], shape: Sequence[int], spacing: Sequence[float]) -> list[Nodule]:
    """Group the marks of different readers into nodules, in the order of their first voxel.

    Two marks match if they share voxels, or if their centers are nearer than the larger one's radius. Pairs are joined
    from the largest overlap (shared voxels per voxel of both) to the smallest, equal ones from the nearest on; two
    groups are joined only if no reader is in both and most of the pairs across match. So one reader's two marks are two
    nodules, however near. ``shape`` and ``spacing`` (mm) are the scan's.
    """
    centers = [np.transpose(np.unravel_index(each.voxels, shape)).mean(axis=0) * spacing for each in marks]
    radii = [(0.75 / math.pi * volume_mm3(each.voxels, spacing)) ** (1 / 3) for each in marks]
    matches: dict[tuple[int, int], tuple[float, float]] = {}  # pair to overlap (Jaccard) and distance (mm)
    for one, other in itertools.combinations(range(len(marks)), 2):
        if marks[one].mark.reader != marks[other].mark.reader:
            shared = np.intersect1d(marks[one].voxels, marks[other].voxels, assume_unique=True).size
            distance = float(np.linalg.norm(centers[one] - centers[other]))
            if shared or distance < max(radii[one], radii[other]):
                overlap = shared / (marks[one].voxels.size + marks[other].voxels.size - shared)
                matches[one, other] = (overlap, distance)
    groups = [{number} for number in range(len(marks))]
    for one, other in sorted(matches, key=lambda pair: (-matches[pair][0], matches[pair][1], pair)):
        first, second = (next(group for group in groups if number in group) for number in (one, other))
        if first is second or {marks[n].mark.reader for n in first} & {marks[n].mark.reader for n in second}:
            continue
        across = [(min(pair), max(pair)) for pair in itertools.product(first, second)]
        if 2 * sum(pair in matches for pair in across) > len(across):
            first |= second
            groups.remove(second)
    nodules = []
    for group in groups:
        members = sorted((marks[number] for number in group), key=lambda each: each.mark.reader)
        voxels, votes = np.unique(np.concatenate([each.voxels for each in members]), return_counts=True)
        # Marks that match by distance alone may have no voxel with so many votes.
        needed = min(math.ceil(len(members) / 2), votes.max())
        nodules.append(Nodule(tuple(members), voxels[votes >= needed]))
    return sorted(nodules, key=lambda nodule: tuple(nodule.voxels[:1]))


# Cubes of CT around a nodule, on one grid of mm whatever the scan's own


@dataclass(frozen=True)
class Cube:
    """A cube with its axes along RAS+."""

    image: np.ndarray  # CT in HU, int16
    mask: np.ndarray  # 1 inside the nodule, uint8
    affine: np.ndarray  # voxel index to RAS+ mm
    padded: float  # share of the voxels outside of the scan, which repeat its nearest voxel

    @property
    def center(self) -> np.ndarray:
        """RAS+ position (mm) of the middle."""
        return (self.affine @ [*(np.array(self.image.shape) - 1) / 2, 1])[:3]

    def write(self, image: Path, mask: Path) -> None:
        """Write both as NIfTI, each atomically; the same cube gives the same bytes."""
        for path, voxels in ((image, self.image), (mask, self.mask)):
            nifti = nibabel.Nifti1Image(voxels, self.affine)
            nifti.header.set_xyzt_units("mm")
            with write_atomically(path) as file:
                file.write(gzip.compress(nifti.to_bytes(), compresslevel=6, mtime=0))


def cut_cube(series: DicomSeries, voxels: np.ndarray, size_mm: float) -> Cube:
    """Cut a cube around the center of a nodule, in one linear interpolation; only the slices in it are read.

    The mask is interpolated, too, and cut at one half, which keeps its volume if slices are thick. ``voxels`` are the
    nodule's flat indices into the sorted and checked scan, ``size_mm`` is the edge of the cube.
    """
    shape = volume_shape(series)
    indices = np.transpose(np.unravel_index(voxels, shape))
    edge = round(size_mm / SPACING_MM)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (series.affine @ [*indices.mean(axis=0), 1])[:3] - SPACING_MM * (edge - 1) / 2
    to_scan = np.linalg.inv(series.affine) @ affine
    to_cube = np.linalg.inv(to_scan)
    places = indices @ to_cube[:3, :3].T + to_cube[:3, 3]
    if places.min() < 0 or places.max() > edge - 1:
        raise InputError(f"the nodule does not fit into a cube of {size_mm:g} mm; take a larger size_mm.")
    # The part of the scan that the cube needs
    corners = np.array([to_scan @ [*corner, 1] for corner in itertools.product((0, edge - 1), repeat=3)])[:, :3]
    start = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, np.array(shape) - 1)
    stop = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, start + 1, shape)
    slices, _ = read_series(replace(series, slices=series.slices[start[2] : stop[2]]))
    ct = np.clip(slices[start[0] : stop[0], start[1] : stop[1]], *HU_RANGE)
    drawn = np.zeros(ct.shape, np.float32)
    drawn[tuple((indices - start).T)] = 1
    grid = (to_scan[:3, :3], to_scan[:3, 3] - start, (edge,) * 3)
    image = ndimage.affine_transform(ct, *grid, order=1, mode="nearest")
    mask = ndimage.affine_transform(drawn, *grid, order=1, mode="constant") >= 0.5
    if not mask.any():  # smaller than a voxel of the cube
        mask[(edge // 2,) * 3] = True
    every = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1)
    places = every @ to_scan[:3, :3].T + to_scan[:3, 3]
    outside = ((places < -0.5) | (places > np.array(shape) - 0.5)).any(axis=-1)
    return Cube(image.round().astype(np.int16), mask.astype(np.uint8), affine, float(outside.mean()))
