"""The headers of DICOM images, read by pydicom, and what a series is made of."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.image_files import is_dicom
from med3d_ext.io.itk_files import LPS_TO_RAS

Vector = tuple[float, ...]

# pydicom warns of values beyond the standard, and of what is refused here.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.ERROR)

# What is not an image of a scan, by modality, and objects without pixels by their class.
_OTHER_MODALITIES = (
    *("SEG", "SR", "KO", "PR", "REG", "DOC", "PLAN", "FID", "AU", "ECG", "SMR", "ANN"),
    *("RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTIMAGE"),
)
_NO_PIXELS = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(?:9|11|66|67|78|79|88|104|4\.2|481\.[3-9])(?:\.|$)")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "SeriesDescription", "PatientID"),
    *("InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)


@dataclass(frozen=True)
class DicomSlice:
    """What a header states of one slice: a file, or a frame of a file; lengths in mm, LPS coordinates.

    Args:
        file: the file.
        sop_uid: the file's own UID.
        origin: center of the first pixel; empty if the file has no position.
        directions: direction of the pixels along a row and along a column, six numbers.
        spacing: distance of pixels along x (within a row) and along y; zeros if the file states none.
        shape: pixels along x and y.
        number: the file's Instance Number; infinite if it has none.
        samples: values of a pixel; 3 for colors.
        frame: number of the frame, from 0; None if the file is one slice.
        rescale: slope and intercept of the frame; None if the file's own hold for it.
        stack: what distinguishes the stacks and the points in time of a file of frames.
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
        """Position (mm) of every slice along the normal; empty if a file states none."""
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

    @property
    def title(self) -> str:
        """How messages name it: with its only file, or the folder of all."""
        is_file = len(self.files) == 1 and self.slices[0].frame is not None
        return f"the series {self} in '{self.files[0] if is_file else self.folder}'"

    def __str__(self) -> str:
        named = ", ".join(part for part in (self.modality, self.description) if part)
        count = f"{len(self.files)} files" if self.slices[0].frame is None else f"{len(self.slices)} frames"
        return f"{self.uid} ({named + ', ' if named else ''}{count})"


def read_dicom(path: Path) -> Any:
    """pydicom's header of one file, of the tags that are used here; None if the file is not DICOM.

    Raises:
        InputError: the file is an image (see :func:`other_kind`) that is damaged, or has no series UID.
    """
    if not is_dicom(path):
        return None
    import pydicom

    header: Any = None
    try:
        with open(path, "rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            start = file.read(12)  # of the element of the pixels, whose length the standard states in 4 bytes
            is_short = start[:4] == b"\xe0\x7f\x10\0" and start[4:6] not in (b"OW", b"OB")
            length = int.from_bytes(start[4:8] if is_short else start[8:12], "little")
            left = os.fstat(file.fileno()).st_size - file.tell() + (4 if is_short else 0)
        is_whole = bool(header.get("Rows") and header.get("Columns"))
        is_whole &= start[:4] != b"\xe0\x7f\x10\0" or length == 0xFFFFFFFF or length <= left
    except Exception:  # pydicom raises many types for a damaged file
        is_whole = False
    if header is not None and other_kind(header)[1]:
        return header
    if not is_whole:
        raise InputError(f"'{path}' cannot be read as a DICOM image; it is damaged: restore or remove it.")
    if not header.get("SeriesInstanceUID"):
        raise InputError(f"'{path}' is a DICOM image without a series UID (0020,000E); restore or remove it.")
    return header


def other_kind(header: Any) -> tuple[str, bool]:
    """What a DICOM object is if it is not a slice of a scan, and whether it never is one; "" for a slice."""
    modality = str(header.get("Modality") or "")
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if modality in _OTHER_MODALITIES or _NO_PIXELS.match(kind):
        return modality or "OT", True
    image_type = header.get("ImageType") or ()
    if "LOCALIZER" in [part.upper() for part in ([image_type] if isinstance(image_type, str) else image_type)]:
        return "localizer", False
    return ("secondary capture", False) if kind.startswith(_SECONDARY_CAPTURE) else ("", False)


def volumes_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """What is an image among the DICOM files of one folder: the folder, each file of frames, or nothing.

    Args:
        folder: the folder.
        names: of its files.
    """
    series: dict[str, Path] = {}
    for path in (folder / name for name in sorted(names)):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
            continue
        try:
            header = read_dicom(path)
            if header is None or other_kind(header)[1]:
                continue
            is_slice = int(header.get("NumberOfFrames") or 1) < 2
        except (ValueError, TypeError):  # whoever reads it says what is wrong
            return [folder]
        if is_slice or header.SeriesInstanceUID in series:
            return [folder]
        series[header.SeriesInstanceUID] = path
    return list(series.values())


def slices_of(path: Path, header: Any) -> list[DicomSlice]:
    """The slices of one file: itself, or its frames by their functional groups.

    Raises:
        InputError: a number cannot be read; frames are not described one by one.
    """
    from pydicom.datadict import dictionary_description

    def numbers(keyword: str, count: int, default: Vector = (), *, sequence: str = "", groups: Any = ()) -> Vector:
        """What a frame's groups state in a sequence, else the header itself."""
        value: Any = None
        try:
            items = [item for group in groups for item in group.get(f"{sequence}Sequence") or ()]
            found = [item.get(keyword) for item in items] or [header.get(keyword)]
            value = next((each for each in found if each not in (None, "")), ())
            parts = [value] if isinstance(value, (str, int, float)) else list(value)
            read = tuple(map(float, parts))
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, NotImplementedError):
            parts, read = [value] if isinstance(value, str) else list(value or "?"), ()
        if parts and (len(read) != count or not np.isfinite(read).all()):
            text, name = "\\".join(map(str, parts)), dictionary_description(keyword)
            raise InputError(f"'{path}' states '{text}' as {name}, which must be {count} number(s); correct it.")
        return read or default

    photometric, complement = str(header.get("PhotometricInterpretation") or "").upper(), None
    if photometric == "MONOCHROME1":  # how to show values, not what they are; ITK turns them over
        names = ("BitsAllocated", "BitsStored", "PixelRepresentation")
        allocated, stored, signed = (int(numbers(name, 1, (0.0,))[0]) for name in names)
        if signed and allocated != stored:
            raise InputError(
                f"'{path}' is MONOCHROME1 with {stored} of {allocated} signed bits, which cannot be read; convert it."
            )
        complement = -1 if signed else 2**stored - 1

    def one(frame: int | None, *groups: Any) -> DicomSlice:
        def number(keyword: str, sequence: str, count: int, default: Vector = ()) -> Vector:
            return numbers(keyword, count, default, sequence=sequence, groups=groups)

        # The standard puts the distance of rows first: along y.
        y, x = number("PixelSpacing", "PixelMeasures", 2, (0.0, 0.0))
        scaling = [number(f"Rescale{name}", "PixelValueTransformation", 1) for name in ("Slope", "Intercept")]
        content = [item for group in groups for item in group.get("FrameContentSequence") or ()][:1]
        return DicomSlice(
            file=path,
            sop_uid=str(header.get("SOPInstanceUID") or ""),
            origin=number("ImagePositionPatient", "PlanePosition", 3),
            directions=number("ImageOrientationPatient", "PlaneOrientation", 6, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
            spacing=(x, y),
            shape=(int(numbers("Columns", 1)[0]), int(numbers("Rows", 1)[0])),
            number=numbers("InstanceNumber", 1, (float("inf"),))[0],
            samples=3 if photometric.startswith("PALETTE") else int(numbers("SamplesPerPixel", 1, (1.0,))[0]),
            frame=frame,
            rescale=(scaling[0][0], scaling[1][0]) if groups and all(scaling) else None,
            stack=tuple(str(each.get(name) or "") for each in content for name in ("StackID", "TemporalPositionIndex")),
            complement=complement,
        )

    whole, count = one(None), int(numbers("NumberOfFrames", 1, (1.0,))[0])
    if count < 2 and whole.origin:
        return [whole]
    try:
        own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
        if own and len(own) != count:
            raise InputError(f"'{path}' holds {count} frames and describes {len(own)}; restore the file.")
        frames = [one(number, group, *shared) for number, group in enumerate(own)]
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' has a header that cannot be read ({error}); restore the file.") from error
    if not frames:
        return [whole] if count < 2 else [replace(whole, origin=(), frame=number) for number in range(count)]
    return frames
