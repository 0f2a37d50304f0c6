"""Where a label is: the one rule that brings a label map onto the voxel grid of its image, or refuses it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from med3d_ext.errors import InputError
from med3d_ext.io.image_files import is_dicom, is_nifti, nifti_header, read_header
from med3d_ext.io.itk_files import LPS_TO_RAS

logger = logging.getLogger("med3d_ext.labels")
TOLERANCE_VOXELS, TOLERANCE_MM = 0.1, 0.1  # headers round their affines; a wrong grid is off by more
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file.

    Args:
        path: the file, or what messages call an image in memory.
        shape: voxels (X, Y, Z).
        affine: voxel index to RAS+ mm (4, 4), as MONAI's reader gives it, before any repair.
        what: what messages call it.
    """

    path: str
    shape: tuple[int, ...]
    affine: np.ndarray
    what: str = "image"

    @classmethod
    def of(cls, path: Any, shape: Sequence[int], affine: Any, what: str = "image") -> Grid:
        """The grid with plain types."""
        return cls(str(path), tuple(int(size) for size in shape), np.asarray(affine, dtype=float), what)

    @functools.cached_property
    def has_place(self) -> bool:
        """Whether the header states a place and directions: an affine of zeros does not, NIfTI with both codes 0 does
        not, nor NRRD without a ``space``; DICOM does, and so does what is not a file."""
        if not _is_usable(self.affine):
            return False
        return not os.path.isfile(self.path) or is_dicom(self.path) or read_header(self.path).is_oriented


def _is_usable(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0)


def grid_of_file(path: str | os.PathLike) -> Grid:
    """The grid of an image file, from its header alone.

    Raises:
        InputError: the file cannot be read.
    """
    header = read_header(path)
    return Grid.of(path, header.shape[:3], header.affine)


def copy_geometry(header: Any, source: Any) -> None:
    """Give a NIfTI header the place and the voxel sizes that another states, both forms with their codes."""
    for field in _GEOMETRY:
        if field in source:  # not in that of Analyze
            header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]


def on_image_grid(voxels: np.ndarray, label: Grid, image: Grid) -> np.ndarray:
    """The voxels of a label (X, Y, Z) in the order of its image's.

    An equal grid passes: no corner of the volume moves by more than 0.1 voxel and 0.1 mm. A grid of the same voxels in
    another order of axes or directions is brought to the image's, without interpolation. If the label states no
    place (an identity affine, as LiTS has, or no geometry at all) or the image has none, labels of the image's shape
    keep the order of their voxels, with a warning.

    Args:
        voxels: the label; the result is a view of it if possible.
        label: its grid.
        image: the image's grid; both headers of NIfTI (sform and qform) count, as tools differ in which they take.

    Raises:
        InputError: the label is elsewhere, or of another voxel size, direction or shape.
    """
    if label.has_place and image.has_place:
        affines = [image.affine]
        if is_nifti(image.path):  # a tool may have drawn the label on either form
            header = nifti_header(image.path)
            forms = [
                getattr(header, form)(coded=True)[0] for form in ("get_sform", "get_qform") if hasattr(header, form)
            ]
            affines += [np.asarray(form, dtype=float) for form in forms if form is not None and _is_usable(form)]
        for affine in affines:
            order = io_orientation(np.linalg.solve(affine, label.affine))
            if _is_equal(_shift(label, order, image.shape, affine)):
                return apply_orientation(voxels, order)
    shift = _shift(label, np.array([[0.0, 1], [1, 1], [2, 1]]), image.shape, image.affine)
    if _is_equal(shift):
        return voxels  # one states no place, and what readers take instead is alike
    bare = next((grid for grid in (label, image) if not grid.has_place), None)
    # What a tool writes that knows no geometry: the identity in the axes of NIfTI, or in those of ITK.
    if bare is None and any(np.allclose(label.affine, identity, atol=1e-6) for identity in (np.eye(4), LPS_TO_RAS)):
        bare = label
    if label.shape != image.shape or bare is None:
        raise InputError(_refusal(label, image))
    away = "" if shift is None else f", up to {shift[1]:.3g} mm away"
    fault = "an identity affine" if bare.has_place else "no place and directions in its header"
    other = image if bare is label else label
    _warn(
        f"{bare.what} '{bare.path}' has {fault}, its {other.what} '{other.path}' another one{away}: the order of the "
        "voxels is kept; overlay them, and copy the header if they match."
    )
    return voxels


def _shift(label: Grid, order: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> tuple[float, float] | None:
    """How far the label's corners are from the image's, in voxels along an axis and in mm; None without an answer."""
    with np.errstate(all="ignore"):
        if not all(np.isfinite(each).all() for each in (order, label.affine, affine)):
            return None
        if tuple(np.array(label.shape)[np.argsort(order[:, 0])]) != tuple(shape):
            return None
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.subtract(shape, 1), 1]
        moved = corners @ (label.affine @ inv_ornt_aff(order, label.shape) - affine).T[:, :3]
        size = np.linalg.norm(affine[:3, :3], axis=0)
        along = moved @ (affine[:3, :3] / np.where(size > 0, size, 1)) / np.where(size > 0, size, 1)
        return float(np.abs(along).max()), float(np.linalg.norm(moved, axis=1).max())


def _is_equal(shift: tuple[float, float] | None) -> bool:
    return shift is not None and shift[0] <= TOLERANCE_VOXELS and shift[1] <= TOLERANCE_MM


@functools.cache
def _warn(sentence: str) -> None:
    logger.warning(sentence)  # once in a process: data are prepared, cached and evaluated from the same files


def _refusal(label: Grid, image: Grid) -> str:
    own, its = f"{label.what} '{label.path}'", f"its {image.what} '{image.path}'"
    shapes = ["x".join(map(str, grid.shape)) for grid in (label, image)]
    if sorted(label.shape) != sorted(image.shape) or not (label.has_place and image.has_place):
        return f"{own} is {shapes[0]}, {its} is {shapes[1]}; give the label of this {image.what}."
    order = io_orientation(np.linalg.solve(image.affine, label.affine))
    if not np.isfinite(order).all():
        return f"{own} has no voxel grid in its affine, {its} has one; write the geometry into its header."
    turned = label.affine @ inv_ornt_aff(order, label.shape)
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (turned, image.affine)]
    shift = _shift(label, order, image.shape, image.affine)
    if shift is None:
        fault = f"is {shapes[0]} in another order of axes than {shapes[1]} of"
    elif (np.abs(sizes[0] - sizes[1]) * np.subtract(image.shape, 1) > TOLERANCE_MM).any():
        own_size, its_size = (" x ".join(f"{size:.4g}" for size in each) for each in sizes)
        fault = f"has voxels of {own_size} mm and ends up to {shift[1]:.3g} mm off the voxels of {its_size} mm of"
    else:
        fault = f"is {shift[1]:.3g} mm off"
    return f"{own} {fault} {its}; resample it to the grid of the {image.what} or correct its header."
