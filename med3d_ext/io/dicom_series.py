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
from med3d_ext.io.dicom_files import DicomSeries, DicomSlice, Tags, other_kind, read_tags, slices_of

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

    Args:
        place: the folder or the file.

    Raises:
        InputError: the folder does not exist, or a DICOM image in it is damaged.
    """
    import itk  # takes seconds to import; only DICOM needs it

    root = Path(place)
    if not root.exists():
        raise InputError(f"'{place}' is not a folder; give the folder of a DICOM series.")
    reader = itk.GDCMImageIO.New()
    headers = []
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if (
            path.is_file()
            and not path.name.startswith(".")
            and path.name != "DICOMDIR"
            and (tags := read_tags(reader, path))
        ):
            headers.append((path, tags, *other_kind(tags)))
    is_alone = all(kind for *_, kind, _ in headers)
    aside = [(path, kind) for path, _, kind, never in headers if kind and (never or not is_alone)]
    remarks = [_set_aside(place, aside)] if aside else []
    found: dict[str, list[tuple[Tags, DicomSlice]]] = defaultdict(list)
    for path, tags, kind, never in headers:
        if not kind or (is_alone and not never):
            found[tags["0020|000e"]] += [(tags, each) for each in slices_of(path, tags)]
    if aside and not found:
        kinds = ", ".join(sorted({kind for _, kind in aside}))
        raise InputError(f"'{place}' holds no image of a scan but {kinds}; give the folder of the scan.")
    return [_series_of(uid, found[uid], remarks) for uid in sorted(found)]


def _set_aside(place: str | os.PathLike, aside: list[tuple[Path, str]]) -> str:
    kinds = [
        f"{kind} ({', '.join(repr(path.name) for path, own in aside if own == kind)})"
        for kind in sorted({k for _, k in aside})
    ]
    return f"'{place}' also contains files that are not slices of the scan and are ignored: {', '.join(kinds)}."


def single_series(folder: str | os.PathLike) -> DicomSeries:
    """The only series of a folder, or of a file of frames.

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
        InputError: a slice lacks its position or is in color; a file of frames holds several stacks; orientations,
            sizes or pixel spacings differ; it is a single slice; two slices lie at one position; a slice is missing;
            slices are unevenly spaced; or they are sheared against each other, as a tilted gantry makes them.
    """
    for each in series.slices:
        if each.samples > 1:
            raise InputError(f"'{each.file}' is a color image; give a series of gray values.")
        if not each.origin and each.frame is not None:
            raise InputError(f"'{each.file}' holds frames without their positions; convert it from its source again.")
        if not each.origin:
            raise InputError(f"'{each.file}' states no position (0020,0032); leave it out or restore its header.")
    if len(series.slices) < 2:
        file = series.files[0]
        raise InputError(f"'{series.folder}' holds a single slice, '{file.name}'; give the folder of the whole series.")
    stacks = sorted({each.stack for each in series.slices})
    if len(stacks) > 1:
        raise InputError(f"{_series(series)} holds {len(stacks)} stacks or points in time; give one of them alone.")
    _check_alike(series)
    _check_positions(series)
    _check_tilt(series)


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
        slices = [series.slices[index] for index in indices]
        for index, plane in zip(indices, _planes(slices)):
            voxels[index] = plane
    # A copy in the order x, y, slice would double the memory.
    return voxels.T, series.affine


def _planes(slices: list[DicomSlice]) -> Iterator[np.ndarray]:
    """The planes (y, x) of slices of one file, rescaled."""
    import itk

    file, reader = slices[0].file, itk.GDCMImageIO.New()
    try:
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        slope, intercept = reader.GetRescaleSlope(), reader.GetRescaleIntercept()
        # Stored values are won back from ITK's, for which float32 is too coarse, only where they are needed.
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


def _series_of(uid: str, members: list[tuple[Tags, DicomSlice]], remarks: list[str]) -> DicomSeries:
    tags = members[0][0]
    slices = [each for _, each in members]
    if slices[0].complement is not None:
        remarks = [
            *remarks,
            f"'{slices[0].file}' is MONOCHROME1, to be shown inverted; its values are read as stored.",
        ]
    series = DicomSeries(uid, tags.get("0008|103e", ""), tags.get("0008|0060", ""), tuple(slices), tuple(remarks))
    if not series.positions:
        return series
    order = np.argsort(series.positions, kind="stable")
    return without_copies(replace(series, slices=tuple(slices[number] for number in order)))


def without_copies(series: DicomSeries, any_content: bool = False) -> DicomSeries:
    """The series with one of the slices that are copies of each other: at one position, with the same values.

    Args:
        series: the series, sorted.
        any_content: keep one slice of a position whatever its values, that of the lowest Instance Number.
    """
    kept: list[DicomSlice] = []
    copies: list[str] = []
    for each in series.slices:
        last = kept[-1] if kept else each
        at_one_place = bool(kept) and abs(series.normal @ np.subtract(each.origin, last.origin)) < SAME_POSITION_MM
        if (
            at_one_place
            and _is_alike(each, last)
            and each.stack == last.stack
            and (any_content or _are_equal(each, last))
        ):
            if each.number < last.number:
                kept[-1], each = each, last
            copies.append(f"{each} next to {kept[-1]}")
        else:
            kept.append(each)
    if not copies:
        return series
    what = "slices at one position" if any_content else "copies of slices"
    remark = f"{_series(series)} holds {what}, of which one is kept: {len(copies)}, {copies[0]} first."
    return replace(series, slices=tuple(kept), remarks=(*series.remarks, remark))


def _are_equal(one: DicomSlice, other: DicomSlice) -> bool:
    return (
        one.file != other.file
        and filecmp.cmp(one.file, other.file, shallow=False)
        or all(np.array_equal(*planes) for planes in zip(_planes([one]), _planes([other])))
    )


def _check_alike(series: DicomSeries) -> None:
    first = series.slices[0]
    for each in series.slices[1:]:
        if _is_alike(each, first):
            continue
        if not np.allclose(each.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
            raise InputError(
                f"{_series(series)} mixes orientations: those of {_pair(first, each)} differ; give one stack alone."
            )
        sizes = " and ".join(f"{one.shape[0]}x{one.shape[1]} of {_mm(one.spacing)} mm" for one in (first, each))
        raise InputError(
            f"{_series(series)} mixes pixel grids: {_pair(first, each)} are {sizes}; give one stack alone."
        )


def _is_alike(one: DicomSlice, other: DicomSlice) -> bool:
    return (
        np.allclose(one.directions, other.directions, rtol=0, atol=SAME_DIRECTION)
        and one.shape == other.shape
        and np.allclose(one.spacing, other.spacing, rtol=1e-3, atol=0)
    )


def _check_positions(series: DicomSeries) -> None:
    positions = np.array(series.positions)
    gaps = np.diff(positions)
    step = float(np.median(gaps[gaps >= SAME_POSITION_MM])) if gaps.max() >= SAME_POSITION_MM else 0.0
    tolerance = max(ROUNDING_MM, SLICE_TOLERANCE * step)
    # Slices that are lost leave a gap here and there; where every fourth is another, the spacing itself changes.
    is_variable = np.mean(np.abs(gaps - step) > tolerance) > 0.25
    for number, gap in enumerate(gaps):
        lower, upper = series.slices[number : number + 2]
        pair = f"{_pair(lower, upper)} ({positions[number]:.2f} and {positions[number + 1]:.2f} mm)"
        if gap < SAME_POSITION_MM:
            raise InputError(
                f"{_series(series)} has two slices at one position: {pair}; remove copies, and split a series of "
                "several time points or echoes."
            )
        missing = round(gap / step) - 1
        if missing > 0 and not is_variable and abs(gap - (missing + 1) * step) <= tolerance:
            slices = "1 slice" if missing == 1 else f"{missing} slices"
            raise InputError(f"{_series(series)} misses {slices} between {pair}; export the whole series.")
        if abs(gap - step) > tolerance:
            raise InputError(
                f"{_series(series)} has uneven slice spacing: {pair} are {gap:.2f} mm apart, most others {step:.2f} "
                "mm; give an evenly spaced series."
            )
    drift = np.abs(positions - np.linspace(positions[0], positions[-1], len(positions)))
    if drift.max() > max(tolerance, step / 2):
        worst = series.slices[int(drift.argmax())]
        raise InputError(
            f"{_series(series)} has uneven slice spacing: {worst} is {drift.max():.2f} mm off an even stack; give an "
            "evenly spaced series."
        )


def _check_tilt(series: DicomSeries) -> None:
    first, last = series.slices[0], series.slices[-1]
    way = np.subtract(last.origin, first.origin)
    aside = float(np.linalg.norm(way - (way @ series.normal) * series.normal))
    if aside > max(*first.spacing, ROUNDING_MM):
        raise InputError(
            f"{_series(series)} is sheared: {_pair(first, last)} are {aside:.2f} mm out of line, as with a tilted "
            "gantry; resample it to a straight grid first (dcm2niix does)."
        )


def _series(series: DicomSeries) -> str:
    return f"the series {series} in '{series.place}'"


def _pair(one: DicomSlice, other: DicomSlice) -> str:
    return f"{one} and {other}"


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3f}" for value in spacing)
