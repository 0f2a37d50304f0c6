"""Label maps as DICOM segmentations, which hospital viewers show over the series they belong to."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
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
    """The package highdicom.

    Raises:
        InputError: it is not installed.
    """
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
    series = single_series(folder)
    slices = _headers(series)
    values = sorted({*names, *np.unique(labels).tolist()} - {0}) or [1]
    planes = _numbered(labels, values).transpose(2, 1, 0)
    if series.slices[0].frame is not None:  # the source's order, which need not be that of the positions
        stored = np.zeros((int(slices[0].NumberOfFrames), *planes.shape[1:]), np.uint8)
        stored[[each.frame or 0 for each in series.slices]] = planes
        planes = stored
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=np.ascontiguousarray(planes),
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(highdicom, values, names, bundle, version),
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


def _headers(series: DicomSeries) -> list[Any]:
    """The slices' headers in order; what may be empty by the standard and was left out altogether is empty."""
    import pydicom

    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in series.files]
    for header in headers:
        if not header.get("SliceThickness"):
            header.SliceThickness = round(series.spacing[2], 6)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, None)
    return headers


def _numbered(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Label values as numbers of segments, uint8."""
    table = np.zeros(max(int(labels.max(initial=0)), *values) + 1, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    return look_up(table, labels)


def _descriptions(
    highdicom: Any, values: Sequence[int], names: Mapping[int, str], bundle: str, version: str
) -> list[Any]:
    """One for each value, in their order."""
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=bundle, version=version, family=codes.cid7162.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=names.get(value, f"label {value}"),
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(values, start=1)
        for category, kind in [_codes(names.get(value, ""))]
    ]


def _codes(name: str) -> tuple[Any, Any]:
    """SNOMED CT codes of a label: what kind of thing it is, and what it is."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    words = name.lower().replace("_", " ").split()
    if _ABNORMAL & set(words):
        return Code(_ALTERED[0], "SCT", _ALTERED[1]), Code(_NEOPLASM[0], "SCT", _NEOPLASM[1])
    structure = _STRUCTURES.get(" ".join(words))
    keyword = "".join(word.capitalize() for word in words)
    if structure is None and keyword and hasattr(codes.SCT, keyword):
        found = getattr(codes.SCT, keyword)
        structure = found.value, found.meaning
    if structure is None:
        return (Code(_TISSUE[0], "SCT", _TISSUE[1]),) * 2
    return Code(_ANATOMICAL[0], "SCT", _ANATOMICAL[1]), Code(structure[0], "SCT", structure[1])
