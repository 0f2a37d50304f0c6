"""The headers of DICOM images, read by ITK, and what a series is made of."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import InputError

Vector = tuple[float, ...]
Tags = dict[str, str]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# DICOM objects without an image (reports, plans, contours, display settings): the tag, 4 bytes, the modality.
_NO_IMAGE = re.compile(rb"\x08\x00\x60\x00.{4}(?:SR|KO|PR|REG|DOC|PLAN|FID|AU|ECG|RTSTRUCT|RTPLAN|RTRECORD)", re.DOTALL)
_TAGS = {
    "0008|0018": "SOP instance UID",
    "0008|0060": "Modality",
    "0008|103e": "Series Description",
    "0010|0020": "Patient ID",
    "0020|000e": "Series Instance UID",
    "0020|0032": "Image Position (Patient)",
    "0020|0037": "Image Orientation (Patient)",
    "0028|0008": "Number of Frames",
    "0028|0010": "Rows",
    "0028|0011": "Columns",
    "0028|0030": "Pixel Spacing",
}


@dataclass(frozen=True)
class DicomSlice:
    """What the header of one file states; lengths in mm, LPS coordinates.

    Args:
        file: the file.
        sop_uid: the slice's own UID.
        origin: center of the first pixel; empty where the file has no position.
        directions: direction of the pixels along a row and along a column, six numbers.
        spacing: distance of pixels along x (within a row) and along y; zeros where the file states none.
        shape: pixels along x and y.
        frames: number of frames.
    """

    file: Path
    sop_uid: str
    origin: Vector
    directions: Vector
    spacing: Vector
    shape: tuple[int, int]
    frames: int = 1


@dataclass(frozen=True)
class DicomSeries:
    """One series, its slices sorted along their normal.

    Args:
        uid: the series' UID.
        description: what the scanner calls it.
        modality: CT, MR and so on.
        slices: the slices in rising order of position.
    """

    uid: str
    description: str
    modality: str
    slices: tuple[DicomSlice, ...]

    @property
    def files(self) -> list[Path]:
        """The files in the order of the slices."""
        return [each.file for each in self.slices]

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return Path(os.path.commonpath([each.file.parent for each in self.slices]))

    @property
    def normal(self) -> np.ndarray:
        """Unit vector along which the slices are stacked (LPS)."""
        row, column = np.reshape(self.slices[0].directions, (2, 3))
        return np.cross(row, column)

    @property
    def positions(self) -> list[float]:
        """Position (mm) of every slice along the normal; empty where a file states none."""
        if not all(each.origin for each in self.slices):
            return []
        return [float(self.normal @ each.origin) for each in self.slices]

    @property
    def spacing(self) -> Vector:
        """Voxel size (mm) along x, y and from slice to slice; the last is 0 for a single slice."""
        step = (self.positions[-1] - self.positions[0]) / max(1, len(self.slices) - 1)
        return (*self.slices[0].spacing, step)

    @property
    def affine(self) -> np.ndarray:
        """Voxel index (x, y, slice) to RAS+ mm, (4, 4)."""
        first, last = (np.array(self.slices[number].origin) for number in (0, -1))
        row, column = np.reshape(self.slices[0].directions, (2, 3))
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = row * self.slices[0].spacing[0], column * self.slices[0].spacing[1]
        affine[:3, 2], affine[:3, 3] = (last - first) / max(1, len(self.slices) - 1), first
        return LPS_TO_RAS @ affine

    def __str__(self) -> str:
        named = ", ".join(part for part in (self.modality, self.description) if part)
        return f"{self.uid} ({named + ', ' if named else ''}{len(self.slices)} files)"


def read_tags(reader: Any, path: Path) -> Tags:
    """The header of one image, tag ("0020|000e") to text; empty for what is no DICOM image."""
    if not reader.CanReadFile(str(path)):
        _refuse_damaged(path)
        return {}
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    header = reader.GetMetaDataDictionary()
    tags = {key: str(header[key]).strip().strip("\0") for key in _TAGS if header.HasKey(key)}
    if "0020|000e" not in tags:
        raise InputError(f"'{path}' is a DICOM image without a series UID (0020,000E); restore or remove it.")
    return tags


def looks_like_dicom(path: Path) -> bool:
    """Whether a file calls itself DICOM, by its first bytes or its name."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() == ".dcm"


def _refuse_damaged(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(4096)
    if looks_like_dicom(path) and not _NO_IMAGE.search(start):
        raise InputError(f"'{path}' cannot be read as a DICOM image; it is damaged: restore or remove it.")


def slice_of(path: Path, tags: Tags) -> DicomSlice:
    rows, columns = (int(_numbers(path, tags, tag, 1)[0]) for tag in ("0028|0010", "0028|0011"))
    # The standard puts the distance of rows first, which is the one along y.
    y, x = _numbers(path, tags, "0028|0030", 2) or (0.0, 0.0)
    return DicomSlice(
        file=path,
        sop_uid=tags.get("0008|0018", ""),
        origin=_numbers(path, tags, "0020|0032", 3),
        directions=_numbers(path, tags, "0020|0037", 6) or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing=(x, y),
        shape=(columns, rows),
        frames=int((_numbers(path, tags, "0028|0008", 1) or (1.0,))[0]),
    )


def _numbers(path: Path, tags: Tags, tag: str, count: int) -> Vector:
    """The numbers of a tag, or none where the file lacks it."""
    text = tags.get(tag, "")
    if not text:
        return ()
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"'{path}' states '{text}' as {_TAGS[tag]}, which must be {count} number(s); correct it.")
    return values
