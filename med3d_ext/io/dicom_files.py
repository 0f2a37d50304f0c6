"""The headers of DICOM images, read by ITK, and what a series is made of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.image_files import is_dicom

Vector = tuple[float, ...]
Tags = dict[str, str]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# What is not an image of a scan, by modality, and objects without pixels by their class; in the first bytes of a file.
_OTHER_MODALITIES = (
    *("SEG", "SR", "KO", "PR", "REG", "DOC", "PLAN", "FID", "AU", "ECG", "SMR", "ANN"),
    *("RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTIMAGE"),
)
_MODALITY = re.compile(rb"(?:\x08\x00\x60\x00|\x00\x08\x00\x60).{4}([A-Z]{2,9})", re.DOTALL)
_NO_PIXELS = re.compile(
    rb"(?:\x02\0\x02\0|\x08\0\x16\0)(?:UI..|.{4})1\.2\.840\.10008\.5\.1\.4\.1\.1\."
    rb"(?:9|11|66|67|78|79|88|104|4\.2|481\.[3-9])(?:[.\s\0]|$)",
    re.DOTALL,
)
_FRAMES = re.compile(rb"\x28\0\x08\0(?:IS..|.{4})(\d+)", re.DOTALL)
_SERIES = re.compile(rb"\x20\0\x0e\0(?:UI..|.{4})([\d.]+)", re.DOTALL)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TAGS = {
    "0008|0008": "Image Type",
    "0008|0016": "SOP Class UID",
    "0008|0018": "SOP Instance UID",
    "0008|0060": "Modality",
    "0008|103e": "Series Description",
    "0010|0020": "Patient ID",
    "0020|000e": "Series Instance UID",
    "0020|0013": "Instance Number",
    "0020|0032": "Image Position (Patient)",
    "0020|0037": "Image Orientation (Patient)",
    "0028|0002": "Samples per Pixel",
    "0028|0004": "Photometric Interpretation",
    "0028|0008": "Number of Frames",
    "0028|0010": "Rows",
    "0028|0011": "Columns",
    "0028|0030": "Pixel Spacing",
    "0028|0100": "Bits Allocated",
    "0028|0101": "Bits Stored",
    "0028|0103": "Pixel Representation",
}


@dataclass(frozen=True)
class DicomSlice:
    """What a header states of one slice: a file, or a frame of a file; lengths in mm, LPS coordinates.

    Args:
        file: the file.
        sop_uid: the file's own UID.
        origin: center of the first pixel; empty where the file has no position.
        directions: direction of the pixels along a row and along a column, six numbers.
        spacing: distance of pixels along x (within a row) and along y; zeros where the file states none.
        shape: pixels along x and y.
        number: the file's Instance Number; infinite where it has none.
        samples: values of a pixel; 3 for colors.
        frame: number of the frame, from 0; None where the file is one slice.
        rescale: slope and intercept of the frame; None where the file's own hold for it.
        stack: what tells apart the stacks and the points in time of a file of frames.
        complement: what stored values and ITK's add up to, for which MONOCHROME1 is another number; None if equal.
    """

    file: Path
    sop_uid: str
    origin: Vector
    directions: Vector
    spacing: Vector
    shape: tuple[int, int]
    number: float = float("inf")
    samples: int = 1
    frame: int | None = None
    rescale: tuple[float, float] | None = None
    stack: tuple[str, ...] = ()
    complement: int | None = None

    def __str__(self) -> str:
        return f"'{self.file.name}'" if self.frame is None else f"frame {self.frame + 1} of '{self.file.name}'"


@dataclass(frozen=True)
class DicomSeries:
    """One series, its slices sorted along their normal.

    Args:
        uid: the series' UID.
        description: what the scanner calls it.
        modality: CT, MR and so on.
        slices: the slices in rising order of position.
        remarks: what was set aside as no part of it, a sentence each.
    """

    uid: str
    description: str
    modality: str
    slices: tuple[DicomSlice, ...]
    remarks: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        """The only file, or the folder of all."""
        return self.files[0] if len(self.files) == 1 and self.slices[0].frame is not None else self.folder

    @property
    def files(self) -> list[Path]:
        """The files in the order of the slices, each once."""
        return list(dict.fromkeys(each.file for each in self.slices))

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
        count = f"{len(self.files)} files" if self.slices[0].frame is None else f"{len(self.slices)} frames"
        return f"{self.uid} ({named + ', ' if named else ''}{count})"


def read_tags(reader: Any, path: Path) -> Tags:
    """The header of one image, tag ("0020|000e") to text; empty for what is not DICOM.

    Of an object that is not an image of a scan (:func:`other_kind`) it may be the modality alone.

    Raises:
        InputError: the file is DICOM and damaged, or an image without a series UID.
    """
    start = _start(path)
    modality = _modality(start) if is_dicom(path) else ""
    if modality in _OTHER_MODALITIES:  # ITK cannot read all of them
        return {"0008|0060": modality}
    try:
        can_read = reader.CanReadFile(str(path))
        if can_read:
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
    except RuntimeError:
        can_read = False
    if not can_read:
        if not is_dicom(path):
            return {}
        if _NO_PIXELS.search(start):
            return {"0008|0060": modality or "OT", "0008|0016": "no pixels"}
        raise InputError(f"'{path}' cannot be read as a DICOM image; it is damaged: restore or remove it.")
    header = reader.GetMetaDataDictionary()
    tags = {key: str(header[key]).strip().strip("\0") for key in _TAGS if header.HasKey(key)}
    if "0020|000e" not in tags:
        raise InputError(f"'{path}' is a DICOM image without a series UID (0020,000E); restore or remove it.")
    return tags


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def _modality(start: bytes) -> str:
    found = _MODALITY.search(start)
    return found[1].decode() if found else ""


def _holds_scan(path: Path) -> bool:
    """Whether a file is DICOM and not, by its first bytes, something that is made from a scan or about it."""
    return is_dicom(path) and _modality(start := _start(path)) not in _OTHER_MODALITIES and not _NO_PIXELS.search(start)


def volumes_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """What is an image among the DICOM files of one folder: the folder, each file of frames, or nothing.

    Args:
        folder: the folder.
        names: of its files.
    """
    series: list[bytes] = []
    files = []
    for path in (folder / name for name in sorted(names)):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file() or not _holds_scan(path):
            continue
        start = _start(path)
        frames, uid = _FRAMES.search(start), _SERIES.search(start)
        if frames is None or int(frames[1]) < 2 or uid is None:
            return [folder]
        files.append(path)
        series.append(uid[1].strip(b"\0 "))
    return files if len(set(series)) == len(series) else [folder]


def other_kind(tags: Tags) -> tuple[str, bool]:
    """What a DICOM object is if it is no slice of a scan, and whether it never is one; "" for a slice."""
    modality, kind = tags.get("0008|0060", ""), tags.get("0008|0016", "")
    if modality in _OTHER_MODALITIES or kind == "no pixels":
        return modality, True
    if "LOCALIZER" in tags.get("0008|0008", "").upper().split("\\"):
        return "localizer", False
    return ("secondary capture", False) if kind.startswith(_SECONDARY_CAPTURE) else ("", False)


def slices_of(path: Path, tags: Tags) -> list[DicomSlice]:
    """The slices of one file: itself, or its frames.

    Raises:
        InputError: a number cannot be read; frames are not described one by one.
    """
    rows, columns = (int(_numbers(path, tags, tag, 1)[0]) for tag in ("0028|0010", "0028|0011"))
    # The standard puts the distance of rows first, which is the one along y.
    y, x = _numbers(path, tags, "0028|0030", 2) or (0.0, 0.0)
    photometric = tags.get("0028|0004", "").upper()
    whole = DicomSlice(
        file=path,
        sop_uid=tags.get("0008|0018", ""),
        origin=_numbers(path, tags, "0020|0032", 3),
        directions=_numbers(path, tags, "0020|0037", 6) or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing=(x, y),
        shape=(columns, rows),
        number=(_numbers(path, tags, "0020|0013", 1) or (float("inf"),))[0],
        samples=3 if photometric.startswith("PALETTE") else int((_numbers(path, tags, "0028|0002", 1) or (1.0,))[0]),
        complement=_complement(path, tags) if photometric == "MONOCHROME1" else None,
    )
    frames = int((_numbers(path, tags, "0028|0008", 1) or (1.0,))[0])
    return [whole] if frames < 2 and whole.origin else _frames(whole, frames)


def _complement(path: Path, tags: Tags) -> int:
    """ITK turns the stored values of MONOCHROME1 over, which says how to show them, not what they are."""
    allocated, stored, signed = (int(_numbers(path, tags, f"0028|010{digit}", 1)[0]) for digit in "013")
    if signed and allocated != stored:
        raise InputError(
            f"'{path}' is MONOCHROME1 with {stored} of {allocated} signed bits, which cannot be read; convert it first."
        )
    return -1 if signed else 2**stored - 1


def _frames(whole: DicomSlice, count: int) -> list[DicomSlice]:
    """The frames of a file by its functional groups, each with its own geometry, slope and intercept."""
    try:
        import pydicom  # ITK hands on no sequences; what has none of them is read without
    except ImportError as error:
        if count < 2:
            return [whole]
        raise InputError(f"'{whole.file}' holds {count} frames, which need pydicom; `pip install pydicom`.") from error
    try:
        header = pydicom.dcmread(whole.file, stop_before_pixels=True, force=True)
        own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        shared = (list(header.get("SharedFunctionalGroupsSequence") or []) or [pydicom.Dataset()])[0]
        if own and len(own) != count:
            raise InputError(f"'{whole.file}' holds {count} frames and describes {len(own)}; restore the file.")
        if not own:
            return [whole] if count < 2 else [replace(whole, origin=(), frame=number) for number in range(count)]
        return [_frame(whole, number, (group, shared)) for number, group in enumerate(own)]
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{whole.file}' has a header that cannot be read ({error}); restore the file.") from error


def _frame(whole: DicomSlice, number: int, groups: Sequence[Any]) -> DicomSlice:
    def stated(sequence: str, keyword: str) -> tuple[Any, ...]:
        for group in groups:
            for item in group.get(f"{sequence}Sequence") or ():
                if (value := item.get(keyword)) not in (None, ""):
                    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else (value,)
        return ()

    y, x = map(float, stated("PixelMeasures", "PixelSpacing") or (0.0, 0.0))
    slope, intercept = (stated("PixelValueTransformation", f"Rescale{name}") for name in ("Slope", "Intercept"))
    stack = [stated("FrameContent", name) for name in ("StackID", "TemporalPositionIndex")]
    return replace(
        whole,
        origin=tuple(map(float, stated("PlanePosition", "ImagePositionPatient"))),
        directions=tuple(map(float, stated("PlaneOrientation", "ImageOrientationPatient"))) or whole.directions,
        spacing=(x, y),
        frame=number,
        rescale=(float(slope[0]), float(intercept[0])) if slope and intercept else None,
        stack=tuple(str(value[0]) if value else "" for value in stack),
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
