"""DICOM series in a folder: found by their headers, checked for a complete and even stack, read as one volume."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries, DicomSlice, Tags, read_tags, slice_of

SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 0.01
SLICE_TOLERANCE = 0.1
"""Share of the slice spacing by which a slice may be off."""
ROUNDING_MM = 0.11
"""What is always tolerated: positions are often rounded to 0.1 mm."""


def find_series(folder: str | os.PathLike) -> list[DicomSeries]:
    """All series of a folder and the folders in it, from headers alone, in the order of their UIDs.

    Files may have any name. What is no DICOM image is passed over: other formats, reports, contours.

    Args:
        folder: the folder.

    Raises:
        InputError: the folder does not exist, or a DICOM image in it is damaged.
    """
    import itk  # takes seconds to import; only DICOM needs it

    if not Path(folder).is_dir():
        raise InputError(f"'{folder}' is not a folder; give the folder of a DICOM series.")
    reader = itk.GDCMImageIO.New()
    found: dict[str, list[tuple[Tags, DicomSlice]]] = defaultdict(list)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR":
            tags = read_tags(reader, path)
            if tags:
                found[tags["0020|000e"]].append((tags, slice_of(path, tags)))
    return [_series_of(uid, found[uid]) for uid in sorted(found)]


def single_series(folder: str | os.PathLike) -> DicomSeries:
    """The only series of a folder.

    Raises:
        InputError: there is none, or more than one.
    """
    found = find_series(folder)
    if not found:
        raise InputError(f"'{folder}' holds no DICOM image; give the folder of a DICOM series.")
    if len(found) > 1:
        named = " and ".join(str(series) for series in found[:3]) + (" and others" if len(found) > 3 else "")
        raise InputError(f"'{folder}' holds {len(found)} DICOM series, {named}; leave one in the folder.")
    return found[0]


def check_series(series: DicomSeries) -> None:
    """Refuse a series whose slices are not an even stack.

    Args:
        series: the series, sorted.

    Raises:
        InputError: a file lacks its position or holds several frames; orientations, sizes or pixel spacings differ; it
            is a single slice; two slices lie at one position; a slice is missing; slices are unevenly spaced; or they
            are sheared against each other, as a tilted gantry makes them.
    """
    for each in series.slices:
        if each.frames > 1:
            raise InputError(f"'{each.file}' holds {each.frames} frames; convert it to NIfTI (dcm2niix does) first.")
        if not each.origin:
            raise InputError(f"'{each.file}' states no position (0020,0032); leave it out or restore its header.")
    _check_alike(series)
    if len(series.slices) < 2:
        raise InputError(f"'{series.folder}' holds a single slice, '{series.files[0].name}'; give the whole series.")
    _check_positions(series)
    _check_tilt(series)


def read_series(series: DicomSeries) -> tuple[np.ndarray, np.ndarray]:
    """Read a series that :func:`check_series` has accepted.

    Returns:
        voxels along x, y and slices, float32, with each file's slope and intercept applied (HU for CT); and the affine
        from voxel index to RAS+ mm.

    Raises:
        InputError: a file cannot be read, or the pixels differ from the headers.
    """
    import itk

    try:
        image = itk.imread([str(file) for file in series.files], pixel_type=itk.F)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"'{series.folder}' cannot be read ({reason}); restore the damaged file.") from error
    # A copy in the order x, y, slice would double the memory; the view keeps ITK's image alive.
    return itk.array_view_from_image(image).T, series.affine


def _series_of(uid: str, members: list[tuple[Tags, DicomSlice]]) -> DicomSeries:
    tags = members[0][0]
    slices = [each for _, each in members]
    series = DicomSeries(uid, tags.get("0008|103e", ""), tags.get("0008|0060", ""), tuple(slices))
    if not series.positions:
        return series
    order = np.argsort(series.positions, kind="stable")
    return DicomSeries(series.uid, series.description, series.modality, tuple(slices[number] for number in order))


def _check_alike(series: DicomSeries) -> None:
    first = series.slices[0]
    for each in series.slices[1:]:
        if not np.allclose(each.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
            raise InputError(
                f"{_series(series)} mixes orientations: those of {_pair(first, each)} differ; give one stack alone."
            )
        if each.shape != first.shape or not np.allclose(each.spacing, first.spacing, rtol=1e-3, atol=0):
            sizes = " and ".join(f"{one.shape[0]}x{one.shape[1]} of {_mm(one.spacing)} mm" for one in (first, each))
            raise InputError(
                f"{_series(series)} mixes pixel grids: {_pair(first, each)} are {sizes}; give one stack alone."
            )


def _check_positions(series: DicomSeries) -> None:
    positions = np.array(series.positions)
    gaps = np.diff(positions)
    step = float(np.median(gaps[gaps >= SAME_POSITION_MM])) if gaps.max() >= SAME_POSITION_MM else 0.0
    tolerance = max(ROUNDING_MM, SLICE_TOLERANCE * step)
    for number, gap in enumerate(gaps):
        lower, upper = series.slices[number : number + 2]
        pair = f"{_pair(lower, upper)} ({positions[number]:.2f} and {positions[number + 1]:.2f} mm)"
        if gap < SAME_POSITION_MM:
            raise InputError(
                f"{_series(series)} has two slices at one position: {pair}; remove copies, and split a series of "
                "several time points or echoes."
            )
        missing = round(gap / step) - 1
        if missing > 0 and abs(gap - (missing + 1) * step) <= tolerance:
            slices = "1 slice" if missing == 1 else f"{missing} slices"
            raise InputError(f"{_series(series)} misses {slices} between {pair}; export the whole series.")
        if abs(gap - step) > tolerance:
            raise InputError(
                f"{_series(series)} has uneven slice spacing: {pair} are {gap:.2f} mm apart, most others {step:.2f} "
                "mm; give an evenly spaced series."
            )
    drift = np.abs(positions - np.linspace(positions[0], positions[-1], len(positions)))
    if drift.max() > max(tolerance, step / 2):
        worst = series.slices[int(drift.argmax())].file.name
        raise InputError(
            f"{_series(series)} has uneven slice spacing: '{worst}' is {drift.max():.2f} mm off an even stack; give an "
            "evenly spaced series."
        )


def _check_tilt(series: DicomSeries) -> None:
    first, last = series.slices[0], series.slices[-1]
    way = np.subtract(last.origin, first.origin)
    aside = float(np.linalg.norm(way - (way @ series.normal) * series.normal))
    if aside > max(*first.spacing, ROUNDING_MM):
        raise InputError(
            f"{_series(series)} is sheared: {_pair(first, last)} are {aside:.2f} mm aside of each other, as a tilted "
            "gantry makes them; resample it to a straight grid first (dcm2niix does)."
        )


def _series(series: DicomSeries) -> str:
    return f"the series {series} in '{series.folder}'"


def _pair(one: DicomSlice, other: DicomSlice) -> str:
    return f"'{one.file.name}' and '{other.file.name}'"


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3f}" for value in spacing)
