"""A cube of CT around a nodule, with the nodule's mask, on one grid of mm whatever the scan's own."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
from med3d_ext.io.dicom_series import read_series
from med3d_ext.io.files import write_atomically
from med3d_ext.tools.lidc.masks import volume_shape

HU_RANGE = (-1024, 3071)
"""What 12-bit CT can hold; scanners fill the corners outside of their round field with lower values."""


@dataclass(frozen=True)
class Cube:
    """A cube with its axes along RAS+.

    Args:
        image: CT in HU, int16.
        mask: 1 inside the nodule, uint8.
        affine: voxel index to RAS+ mm.
        padded: share of the voxels outside of the scan, which repeat its nearest voxel.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    padded: float

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


def cut_cube(series: DicomSeries, voxels: np.ndarray, size_mm: float, spacing_mm: float) -> Cube:
    """Cut a cube around the center of a nodule, in one linear interpolation; only the slices in it are read.

    The mask is interpolated, too, and cut at one half, which keeps its volume where slices are thick.

    Args:
        series: the scan, sorted and checked.
        voxels: the nodule, flat indices into the scan.
        size_mm: edge of the cube.
        spacing_mm: edge of its voxels.

    Raises:
        InputError: the nodule does not fit into the cube, or a file of the scan cannot be read.
    """
    shape = volume_shape(series)
    indices = np.transpose(np.unravel_index(voxels, shape))
    edge = round(size_mm / spacing_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    middle = series.affine @ [*indices.mean(axis=0), 1]
    affine[:3, 3] = middle[:3] - spacing_mm * (edge - 1) / 2
    to_scan = np.linalg.inv(series.affine) @ affine
    _check_size(indices, np.linalg.inv(to_scan), edge, size_mm)

    start, stop = _region(to_scan, edge, shape)
    shift = to_scan[:3, 3] - start
    ct = _read_region(series, start, stop)
    image = ndimage.affine_transform(ct, to_scan[:3, :3], shift, (edge,) * 3, order=1, mode="nearest")
    drawn = np.zeros(ct.shape, np.float32)
    drawn[tuple((indices - start).T)] = 1
    mask = ndimage.affine_transform(drawn, to_scan[:3, :3], shift, (edge,) * 3, order=1, mode="constant") >= 0.5
    if not mask.any():  # smaller than a voxel of the cube
        mask[(edge // 2,) * 3] = True
    return Cube(image.round().astype(np.int16), mask.astype(np.uint8), affine, _padded(to_scan, edge, shape))


def _check_size(indices: np.ndarray, to_cube: np.ndarray, edge: int, size_mm: float) -> None:
    places = indices @ to_cube[:3, :3].T + to_cube[:3, 3]
    if places.min() < 0 or places.max() > edge - 1:
        raise InputError(f"the nodule does not fit into a cube of {size_mm:g} mm; take a larger size_mm.")


def _region(to_scan: np.ndarray, edge: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and end of the part of the scan that a cube needs."""
    corners = np.array([to_scan @ [*corner, 1] for corner in itertools.product((0, edge - 1), repeat=3)])[:, :3]
    start = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, np.array(shape) - 1)
    stop = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, start + 1, shape)
    return start, stop


def _read_region(series: DicomSeries, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    slices, _ = read_series(replace(series, slices=series.slices[start[2] : stop[2]]))
    return np.clip(slices[start[0] : stop[0], start[1] : stop[1]], *HU_RANGE)


def _padded(to_scan: np.ndarray, edge: int, shape: tuple[int, int, int]) -> float:
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1)
    places = grid @ to_scan[:3, :3].T + to_scan[:3, 3]
    return float(((places < -0.5) | (places > np.array(shape) - 0.5)).any(axis=-1).mean())
