"""Label maps as DICOM segmentations, which hospital viewers show over the series they belong to."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_series import single_series
from med3d_ext.io.label_maps import look_up

# SNOMED CT code and meaning; what is not here is sought among pydicom's codes by its name.
_STRUCTURES = {
    "left lung": ("44029006", "Left lung"),
    "right lung": ("3341006", "Right lung"),
    "vessel": ("59820001", "Blood vessel"),
}
_ABNORMAL = {"tumor", "tumour", "cancer", "lesion", "nodule"}
_ANATOMICAL = ("123037004", "Anatomical structure")
_ALTERED = ("49755003", "Morphologically altered structure")
_NEOPLASM = ("108369006", "Neoplasm")
_TISSUE = ("85756007", "Tissue")
# Anonymized series often lack these.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def need_highdicom() -> Any:
    """The package highdicom; an InputError if it is not installed."""
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    try:
        return importlib.import_module("highdicom")
    except ImportError as error:
        raise InputError(f"--dicom_seg needs highdicom ({error}); install it with `pip install highdicom`.") from error


def write_dicom_seg(
    path: str | os.PathLike,
    labels: np.ndarray,
    names: Mapping[int, str],
    folder: str | os.PathLike,
    bundle: str,
    version: str,
) -> None:
    """Write a binary DICOM segmentation that refers to the slices of its series.

    Args:
        path: the file to write.
        labels: label values (X, Y, slice) in the order in which ``load_volume`` reads the series.
        names: label value to name. The standard counts segments without gaps: segment n is the n-th value.
        folder: the folder of the series, or its file of frames.
        bundle: what segmented: it is named as the algorithm.
        version: its version.

    Raises:
        InputError: highdicom is missing, or the series lacks what a segmentation must refer to.
    """
    highdicom = need_highdicom()
    import pydicom
    from pydicom.sr.codedict import codes

    series = single_series(folder)
    slices = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in series.files]
    for header in slices:
        if not header.get("SliceThickness"):
            header.SliceThickness = round(series.spacing[2], 6)
        for keyword in _MAY_BE_EMPTY:  # by the standard
            if keyword not in header:
                setattr(header, keyword, None)
    values = sorted({*names, *np.unique(labels).tolist()} - {0}) or [1]
    numbers = np.zeros(max(int(labels.max(initial=0)), *values) + 1, np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    planes = look_up(numbers, labels).transpose(2, 1, 0)
    if series.slices[0].frame is not None:  # the source's order, which need not be that of the positions
        stored = np.zeros((int(slices[0].NumberOfFrames), *planes.shape[1:]), np.uint8)
        stored[[each.frame or 0 for each in series.slices]] = planes
        planes = stored
    try:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=bundle, version=version, family=codes.cid7162.ArtificialIntelligence
        )
        segments = []
        for number, value in enumerate(values, start=1):
            category, kind = _codes(names.get(value, ""))
            segment = highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=names.get(value, f"label {value}"),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
            segments.append(segment)
        segmentation = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=np.ascontiguousarray(planes),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=1000 + int(slices[0].get("SeriesNumber") or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="med3d_ext",
            manufacturer_model_name=bundle,
            software_versions=version,
            device_serial_number="0",
            series_description=f"{bundle} segmentation",
        )
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"No DICOM segmentation of '{folder}' can be made ({reason}); correct its headers or leave out --dicom_seg."
        ) from error
    segmentation.save_as(path)


def _codes(name: str) -> tuple[Any, Any]:
    """SNOMED CT codes of a label: what kind of thing it is, and what it is."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    words = name.lower().replace("_", " ").split()
    keyword = "".join(word.capitalize() for word in words)
    category, kind = _ANATOMICAL, _STRUCTURES.get(" ".join(words))
    if _ABNORMAL & set(words):
        category, kind = _ALTERED, _NEOPLASM
    elif kind is None and keyword and hasattr(codes.SCT, keyword):
        found = getattr(codes.SCT, keyword)
        kind = found.value, found.meaning
    elif kind is None:
        category = kind = _TISSUE
    return Code(category[0], "SCT", category[1]), Code(kind[0], "SCT", kind[1])
