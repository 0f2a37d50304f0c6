"""DICOM series in a folder: found by their headers, checked for a complete and even stack, read as one volume."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries, DicomSlice, other_kind, read_dicom, slices_of

SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 0.01
SLICE_TOLERANCE = 0.1
"""Share of the slice spacing by which a slice may be off."""
ROUNDING_MM = 0.11
"""What is always tolerated: positions are often rounded to 0.1 mm."""


def find_series(place: str | os.PathLike) -> list[DicomSeries]:
    """All series of a folder and the folders in it, or of one file, from headers alone, in the order of their UIDs.

    Files may have any name. Other formats are passed over. Segmentations, doses, reports, contours and plans are set
    aside, and next to a scan also localizers and secondary captures, as are copies of a slice; the series' ``remarks``
    say so.

    Raises:
        InputError: the folder does not exist, or a DICOM image in it is damaged.
    """
    root = Path(place)
    if not root.exists():
        raise InputError(f"'{place}' is not a folder; give the folder of a DICOM series.")
    headers = []
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR":
            header = read_dicom(path)
            if header is not None:
                headers.append((path, header, *other_kind(header)))
    is_alone = all(kind for *_, kind, _ in headers)
    aside: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[DicomSlice]] = defaultdict(list)
    named: dict[str, tuple[str, str]] = {}
    for path, header, kind, never in headers:
        if kind and (never or not is_alone):
            aside[kind].append(repr(path.name))
        else:
            uid = str(header.SeriesInstanceUID)
            description, modality = (str(header.get(name) or "").strip() for name in ("SeriesDescription", "Modality"))
            named.setdefault(uid, (description, modality))
            found[uid] += slices_of(path, header)
    if aside and not found:
        raise InputError(f"'{place}' holds no image of a scan but {', '.join(sorted(aside))}; give the scan's folder.")
    remarks = []
    if aside:
        kinds = ", ".join(f"{kind} ({', '.join(names)})" for kind, names in sorted(aside.items()))
        remarks = [f"'{place}' also contains files that are not slices of the scan and are ignored: {kinds}."]
    series = []
    for uid, slices in sorted(found.items()):
        inverted = f"'{slices[0].file}' is MONOCHROME1, to be shown inverted; its values are read as stored."
        own = [*remarks, inverted] if slices[0].complement is not None else remarks
        each = DicomSeries(uid, *named[uid], tuple(slices), tuple(own))
        if each.positions:
            order = np.argsort(each.positions, kind="stable")
            each = without_copies(replace(each, slices=tuple(slices[number] for number in order)))
        series.append(each)
    return series


def single_series(folder: str | os.PathLike) -> DicomSeries:
    """The only series of a folder, or of a file of frames; an InputError if there is none, or more than one."""
    found = find_series(folder)
    if not found:
        raise InputError(f"'{folder}' holds no DICOM image; give the folder of a DICOM series.")
    if len(found) > 1:
        named = " and ".join(str(series) for series in found[:3]) + (" and others" if len(found) > 3 else "")
        raise InputError(f"'{folder}' holds {len(found)} DICOM series, {named}; leave one in the folder.")
    return found[0]


def without_copies(series: DicomSeries, any_content: bool = False) -> DicomSeries:
    """The series with one of the slices that are copies of each other: at one position, with the same values.

    Of copies, or with ``any_content`` of all slices at a position, that of the lowest Instance Number is kept.
    """

    def are_copies(one: DicomSlice, other: DicomSlice) -> bool:
        is_one_place = abs(series.normal @ np.subtract(one.origin, other.origin)) < SAME_POSITION_MM
        if not is_one_place or not _is_alike(one, other) or one.stack != other.stack:
            return False
        if any_content or (one.file != other.file and filecmp.cmp(one.file, other.file, shallow=False)):
            return True
        return all(np.array_equal(*planes) for planes in zip(_planes([one]), _planes([other])))

    kept: list[DicomSlice] = []
    copies: list[str] = []
    for each in series.slices:
        if not kept or not are_copies(each, kept[-1]):
            kept.append(each)
            continue
        if each.number < kept[-1].number:
            kept[-1], each = each, kept[-1]
        copies.append(f"{each} next to {kept[-1]}")
    if not copies:
        return series
    what = "slices at one position" if any_content else "copies of slices"
    remark = f"{series.title} holds {what}, of which one is kept: {len(copies)}, {copies[0]} first."
    return replace(series, slices=tuple(kept), remarks=(*series.remarks, remark))


def _is_alike(one: DicomSlice, other: DicomSlice) -> bool:
    return (
        np.allclose(one.directions, other.directions, rtol=0, atol=SAME_DIRECTION)
        and one.shape == other.shape
        and np.allclose(one.spacing, other.spacing, rtol=1e-3, atol=0)
    )


def check_series(series: DicomSeries) -> None:
    """Refuse a sorted series whose slices are not an even stack.

    Raises:
        InputError: a slice lacks its position or is in color; a file of frames holds several stacks; orientations,
            sizes or pixel spacings differ; it is a single slice; two slices lie at one position; a slice is missing;
            slices are unevenly spaced; or they are sheared against each other, as a tilted gantry makes them.
    """
    first, last, title = series.slices[0], series.slices[-1], series.title
    for each in series.slices:
        if each.samples > 1:
            raise InputError(f"'{each.file}' is a color image; give a series of gray values.")
        if not each.origin and each.frame is not None:
            raise InputError(f"'{each.file}' holds frames without their positions; convert it from its source again.")
        if not each.origin:
            raise InputError(f"'{each.file}' states no position (0020,0032); leave it out or restore its header.")
    if len(series.slices) < 2:
        name = first.file.name
        raise InputError(f"'{series.folder}' holds a single slice, '{name}'; give the folder of the whole series.")
    stacks = {each.stack for each in series.slices}
    if len(stacks) > 1:
        raise InputError(f"{title} holds {len(stacks)} stacks or points in time; give one of them alone.")
    for each in series.slices:
        if not np.allclose(each.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
            raise InputError(f"{title} mixes orientations: those of {first} and {each} differ; give one stack alone.")
        if not _is_alike(each, first):
            raise InputError(f"{title} mixes pixel grids: those of {first} and {each} differ; give one stack alone.")
    _check_gaps(series)
    way = np.subtract(last.origin, first.origin)
    aside = float(np.linalg.norm(way - (way @ series.normal) * series.normal))
    if aside > max(*first.spacing, ROUNDING_MM):
        raise InputError(
            f"{title} is sheared: {first} and {last} are {aside:.2f} mm out of line, as with a tilted gantry; resample "
            "it to a straight grid first (dcm2niix does)."
        )


def _check_gaps(series: DicomSeries) -> None:
    positions, title = np.array(series.positions), series.title
    gaps = np.diff(positions)
    step = float(np.median(gaps[gaps >= SAME_POSITION_MM])) if gaps.max() >= SAME_POSITION_MM else 0.0
    tolerance = max(ROUNDING_MM, SLICE_TOLERANCE * step)
    # Slices that are lost leave a gap here and there; if every fourth is another, the spacing itself changes.
    is_variable = np.mean(np.abs(gaps - step) > tolerance) > 0.25
    for number, gap in enumerate(gaps):
        lower, upper = series.slices[number : number + 2]
        pair = f"{lower} and {upper} ({positions[number]:.2f} and {positions[number + 1]:.2f} mm)"
        if gap < SAME_POSITION_MM:
            raise InputError(
                f"{title} has two slices at one position: {pair}; remove copies, and split a series of several time "
                "points or echoes."
            )
        missing = round(gap / step) - 1
        if missing > 0 and not is_variable and abs(gap - (missing + 1) * step) <= tolerance:
            slices = "1 slice" if missing == 1 else f"{missing} slices"
            raise InputError(f"{title} misses {slices} between {pair}; export the whole series.")
        if abs(gap - step) > tolerance:
            raise InputError(
                f"{title} has uneven slice spacing: {pair} are {gap:.2f} mm apart, most others {step:.2f} mm; give an "
                "evenly spaced series."
            )
    drift = np.abs(positions - np.linspace(positions[0], positions[-1], len(positions)))
    if drift.max() > max(tolerance, step / 2):
        raise InputError(
            f"{title} has uneven slice spacing: {series.slices[int(drift.argmax())]} is {drift.max():.2f} mm off an "
            "even stack; give an evenly spaced series."
        )


def read_series(series: DicomSeries) -> tuple[np.ndarray, np.ndarray]:
    """Read a series that :func:`check_series` has accepted.

    Returns:
        voxels along x, y and slices, float32, with each file's or frame's slope and intercept applied (HU for CT); and
        the affine from voxel index to RAS+ mm.

    Raises:
        InputError: a file cannot be read, or the pixels differ from the headers.
    """
    columns, rows = series.slices[0].shape
    voxels = np.empty((len(series.slices), rows, columns), np.float32)
    of_file: dict[Path, list[int]] = defaultdict(list)
    for index, each in enumerate(series.slices):
        of_file[each.file].append(index)
    for indices in of_file.values():
        for index, plane in zip(indices, _planes([series.slices[index] for index in indices])):
            voxels[index] = plane
    return voxels.T, series.affine  # a copy in the order x, y, slice would double the memory


def _planes(slices: list[DicomSlice]) -> Iterator[np.ndarray]:
    """The planes (y, x) of slices of one file, rescaled."""
    import itk  # takes seconds to import; reads what is compressed, too

    file, reader = slices[0].file, itk.GDCMImageIO.New()
    try:
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        slope, intercept = reader.GetRescaleSlope(), reader.GetRescaleIntercept()
        # Stored values are won back from ITK's, for which float32 is too coarse, only if they are needed.
        is_odd = any(each.complement is not None or each.rescale not in (None, (slope, intercept)) for each in slices)
        image = itk.imread(str(file), pixel_type=itk.D if is_odd else itk.F, imageio=reader)
        content = itk.array_view_from_image(image)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"'{file}' cannot be read ({reason}); it is damaged: restore it.") from error
    content = content.reshape(-1, *content.shape[-2:])
    for each in slices:
        if content.shape[1:] != each.shape[::-1] or (each.frame or 0) >= len(content):
            raise InputError(f"'{file}' holds other pixels than its header says; restore it.")
        plane = content[each.frame or 0]
        if is_odd:
            stored = np.rint((plane - intercept) / slope)
            if each.complement is not None:
                stored = each.complement - stored
            own = each.rescale or (slope, intercept)
            plane = stored * own[0] + own[1]
        yield plane
