"""DICOM series as scanners write them, small: for tests of whatever reads DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT = "1.2.840.10008.1.2.1"


def write_slice(path: Path, stored: np.ndarray, tags: dict[str, Any], sop_class: str = CT_IMAGE) -> Path:
    """Write one file of stored values (x, y), int16 or uint16; a tag (keyword to value) of None is left out."""
    signed = stored.dtype == np.int16
    data = Dataset()
    data.SOPClassUID, data.Modality, data.StudyInstanceUID = sop_class, "CT", "1.2.1"
    data.Columns, data.Rows = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, int(signed)
    data.PixelData = stored.T.astype("<i2" if signed else "<u2").tobytes()
    for keyword, value in tags.items():
        if value is None:
            data.pop(keyword, None)
        else:
            setattr(data, keyword, value)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = EXPLICIT, sop_class
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    directions: np.ndarray | None = None,
    uid: str = "1.2.3",
    names: str = "{}.dcm",
    skip: Sequence[int] = (),
    tags: dict[str, Any] | None = None,
) -> Path:
    """Write a series, a file per slice, of stored values (x, y, slice); lengths in mm, LPS.

    The columns of ``directions`` are those of x, y and of the slices in the order of ``stored``, which may run against
    the cross product of the other two. Slice n has the UID ``uid.n``; ``skip`` are slices to leave out.
    """
    directions = np.eye(3) if directions is None else np.asarray(directions, dtype=float)
    for number in range(stored.shape[2]):
        if number in skip:
            continue
        position = np.asarray(origin) + directions[:, 2] * spacing[2] * number
        own = {
            "SeriesInstanceUID": uid,
            "SOPInstanceUID": f"{uid}.{number}",
            "InstanceNumber": number + 1,
            "SeriesDescription": "CHEST",
            "PixelSpacing": [spacing[1], spacing[0]],
            "ImagePositionPatient": [pydicom.valuerep.format_number_as_ds(float(value)) for value in position],
            "ImageOrientationPatient": [
                pydicom.valuerep.format_number_as_ds(float(value)) for value in directions[:, :2].T.ravel()
            ],
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
        }
        write_slice(folder / names.format(number), stored[:, :, number], {**own, **(tags or {})})
    return folder


def write_frames(
    path: Path,
    stored: np.ndarray,
    order: Sequence[int],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    slopes: Sequence[float] | None = None,
    groups: Sequence[dict[str, Any]] | None = None,
    tags: dict[str, Any] | None = None,
) -> Path:
    """Write one file of frames, as scanners of today do, of stored values (x, y, slice) in the order of positions.

    Args:
        order: which slice each frame shows.
        slopes: slope of each frame; the intercept is -1024. Defaults to None: one slope of 1 that all share.
        groups: further facts of each frame's content, keyword to value.
    """

    def item(**values: Any) -> list[Dataset]:
        content = Dataset()
        for keyword, value in values.items():
            setattr(content, keyword, value)
        return [content]

    def rescale(slope: float) -> list[Dataset]:
        return item(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU")

    shared = {
        "PixelMeasuresSequence": item(PixelSpacing=[spacing[1], spacing[0]], SliceThickness=spacing[2]),
        "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    }
    if slopes is None:
        shared["PixelValueTransformationSequence"] = rescale(1)
    frames = []
    for number, index in enumerate(order):
        own = {"PlanePositionSequence": item(ImagePositionPatient=[-10.0, 20.0, -300.5 + spacing[2] * index])}
        if slopes is not None:
            own["PixelValueTransformationSequence"] = rescale(slopes[number])
        if groups is not None:
            own["FrameContentSequence"] = item(**groups[number])
        frames += item(**own)
    facts = {
        "SeriesInstanceUID": "1.2.5",
        "SOPInstanceUID": "1.2.5.1",
        "NumberOfFrames": len(order),
        "PixelData": np.stack([stored[:, :, index].T for index in order]).tobytes(),
        "SharedFunctionalGroupsSequence": item(**shared),
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return write_slice(path, stored[:, :, 0], {**facts, **(tags or {})}, ENHANCED_CT)
