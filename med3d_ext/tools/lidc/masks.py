"""Readers' outlines on the voxels of their scan.

An outline runs through the pixels just outside of the nodule (LIDC's documentation of its XML): what it encloses is
nodule and its own pixels are not. An outline of what is excluded, an air-filled cavity for example, cuts out what it
encloses; its own pixels are not nodule either.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from skimage.draw import line

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
from med3d_ext.tools.lidc.xml import Contour, Mark


def volume_shape(series: DicomSeries) -> tuple[int, int, int]:
    """Voxels of a series along x, y and slices."""
    return (*series.slices[0].shape, len(series.slices))


def mark_voxels(mark: Mark, series: DicomSeries) -> np.ndarray:
    """Voxels of one reader's nodule.

    Args:
        mark: the outlines.
        series: the series that they were drawn on, sorted and checked.

    Returns:
        sorted flat indices into :func:`volume_shape`.

    Raises:
        InputError: an outline lies outside the volume or in a slice that the series lacks, none encloses a voxel, or
            the nodule reaches the first or the last slice, where the scan may cut it off.
    """
    shape = volume_shape(series)
    drawn: dict[int, dict[bool, set[int]]] = {}
    for contour in mark.contours:
        number = _slice_number(mark, contour, series)
        _check_inside(mark, contour, shape, series, number)
        parts = drawn.setdefault(number, {True: set(), False: set()})
        x, y = np.transpose(enclosed_pixels(contour.points, with_outline=not contour.inclusion))
        parts[contour.inclusion].update(np.ravel_multi_index((x, y, np.full_like(x, number)), shape).tolist())
    voxels = np.array(sorted(set().union(*(parts[True] - parts[False] for parts in drawn.values()))), dtype=np.int64)
    if not voxels.size:
        raise InputError(f"{mark} encloses no voxel; redraw or remove it.")
    _check_border(mark, voxels, shape)
    return voxels


def enclosed_pixels(points: np.ndarray, with_outline: bool = False) -> np.ndarray:
    """Pixels that a closed outline encloses.

    Args:
        points: pixels of the outline in their order, (n, 2); gaps between neighbors are closed by straight lines.
        with_outline: whether those that it runs through are among them.

    Returns:
        pixels, (m, 2).
    """
    start = points.min(axis=0)
    corners = points - start
    drawn = np.zeros(corners.max(axis=0) + 1, dtype=bool)
    for one, next_one in zip(corners, np.roll(corners, -1, axis=0)):
        drawn[line(*one, *next_one)] = True
    # Filling holes, and not the polygon's even-odd rule: where an outline touches itself, both sides are enclosed.
    filled = ndimage.binary_fill_holes(drawn)
    return np.argwhere(filled if with_outline else filled & ~drawn) + start


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


def _check_inside(mark: Mark, contour: Contour, shape: tuple[int, int, int], series: DicomSeries, number: int) -> None:
    if not len(contour.points):
        raise InputError(f"{mark} has an outline without points at z = {contour.z:g} mm; remove it.")
    low, high = contour.points.min(axis=0), contour.points.max(axis=0)
    if (low < 0).any() or (high >= shape[:2]).any():
        raise InputError(
            f"{mark} has an outline outside the volume: x {low[0]} to {high[0]} and y {low[1]} to {high[1]} in a "
            f"slice of {shape[0]}x{shape[1]} ({series.slices[number]}); correct or remove it."
        )


def _check_border(mark: Mark, voxels: np.ndarray, shape: tuple[int, int, int]) -> None:
    # Within a slice an outline lies in the image, and so does all that it encloses: only the ends can cut it off.
    numbers = voxels % shape[2]
    for end, name in ((0, "first"), (shape[2] - 1, "last")):
        if (numbers == end).any():
            raise InputError(f"{mark} is in the {name} slice of the scan, which may cut it off; remove it.")
