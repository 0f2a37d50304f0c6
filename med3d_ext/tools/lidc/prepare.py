"""``prepare lidc``: LIDC-IDRI as it is published (DICOM series, readers' XML) becomes a folder of rated nodules.

One scan is in memory at a time, and of it only the slices around one nodule. Each finished scan is remembered in the
output, so that an interrupted call resumes where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from med3d_ext.errors import Faults, InputError
from med3d_ext.io.dicom_files import DicomSeries, other_kind, read_dicom
from med3d_ext.io.dicom_series import check_series, find_series, without_copies
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.tools.lidc.nodules import (
    SPACING_MM,
    Outlined,
    cluster_marks,
    cut_cube,
    mark_voxels,
    volume_mm3,
    volume_shape,
)
from med3d_ext.tools.lidc.xml import Reading, check_malignancy, find_readings, is_lidc, parse_reading

logger = logging.getLogger("med3d_ext.prepare")
TABLE, SUMMARY, DONE = "nodules.csv", "lidc.json", ".lidc"
CUBE_MM = 64.0
Row = dict[str, Any]
_FORMAT = 1  # of the remembered scans; raise it when a cube or a row changes
_PARTS = ("images", "masks")


@dataclass(frozen=True)
class Scan:
    """A CT scan with its readings."""

    name: str  # the patient's ID and the number of the scan among the patient's, fit for file names
    patient: str  # the patient's ID
    folder: Path  # of the DICOM files
    reading: Reading


def read_lidc(
    src: str | os.PathLike, output: str | os.PathLike, skip_bad: bool = False, size_mm: float = CUBE_MM
) -> Path:
    """Turn LIDC-IDRI into ``images/``, ``masks/`` and ``nodules.csv``, a row and a cube per nodule of 3 mm or more.

    Marks of different readers are one nodule by :func:`med3d_ext.tools.lidc.nodules.cluster_marks`; its mask is what at
    least half of them enclose, its ratings are their medians. Cubes hold CT in HU (int16, clipped to 12 bits), axes
    along RAS+; where they reach over the scan they repeat its last voxel (column ``padded``).

    ``lidc.json`` in the output states the size and what was left out and why. Bad, and with ``skip_bad`` left out, are:
    files of readings that are damaged or name a series that is missing; scans whose slices are not evenly spaced; marks
    without a malignancy rating, outside the volume, in the first or last slice or without a voxel; nodules larger than
    the cube. All of it is logged, and what could be read is kept for the next call; ``nodules.csv`` is only written
    when the call succeeds.
    """
    root = Path(src).expanduser()
    if not root.is_dir():
        raise InputError(f"'{src}' is not a folder; give the folder with LIDC-IDRI's patients.")
    folder, size_mm = Path(output).expanduser(), float(size_mm)
    scans, problems = find_scans(root)
    if not scans and not problems:
        raise InputError(f"'{src}' holds no XML file of CT readings; give the folder with LIDC-IDRI's patients.")
    _refuse(problems, problems, skip_bad)
    rows: list[Row] = []
    begin = time.monotonic()
    for number, scan in enumerate(scans, start=1):
        found, faults = _read_scan(scan, folder, size_mm)
        _refuse(faults, [], skip_bad)
        rows += found
        problems += faults
        left = timedelta(seconds=round((time.monotonic() - begin) / number * (len(scans) - number)))
        logger.info(f"scan {number} of {len(scans)} ({scan.name}): {len(found)} nodules, {left} left")
    _refuse([], problems, skip_bad)
    if not rows:
        raise InputError(f"'{src}' holds no nodule of 3 mm or more that can be used; add scans that do.")
    with write_atomically(folder / TABLE, "w") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    counts = {
        "scans": len({row["scan"] for row in rows}),
        "scans_without_nodule": len(scans) - len({row["scan"] for row in rows}),
        "patients": len({row["patient"] for row in rows}),
        "nodules": len(rows),
        "marks": sum(row["readers"] for row in rows),
        "marks_below_3_mm": sum(scan.reading.small for scan in scans),
        "marks_of_no_nodule": sum(scan.reading.other for scan in scans),
        "left_out": len(problems),
    }
    write_json(folder / SUMMARY, {"size_mm": size_mm, "spacing_mm": SPACING_MM, **counts, "reasons": problems})
    logger.info(
        f"{counts['nodules']} nodules of {counts['marks']} marks in {counts['scans']} scans of {counts['patients']} "
        f"patients are in {folder}; left out as bad: {len(problems)} ({SUMMARY} says which)"
    )
    return folder


def _refuse(new: Sequence[str], problems: Sequence[str], skip_bad: bool) -> None:
    """Log what is new, and stop on all problems so far unless they are left out."""
    for problem in new:
        logger.warning(f"left out: {problem}")
    if problems and not skip_bad:
        others = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{problems[0].rstrip('.')}; or leave out this{others} by --skip_bad.")


def nodules_folder(src: str | os.PathLike, output: str | os.PathLike, skip_bad: bool = False) -> Path:
    """The folder with ``nodules.csv``: ``src``, or what :func:`read_lidc` writes where ``src`` is LIDC-IDRI itself."""
    root = Path(src).expanduser()
    ready = any((root / name).is_file() for name in (TABLE, "dataset.json"))
    # Written into the source itself, the table is brought up to date: patients may have come since.
    ours = (root / SUMMARY).is_file() and root.resolve() == Path(output).expanduser().resolve()
    return root if (ready and not ours) or not is_lidc(root) else read_lidc(root, output, skip_bad)


def find_scans(src: Path) -> tuple[list[Scan], list[str]]:
    """The scans below a folder, sorted by name, and one sentence for each file of readings that gives none.

    Readings of chest X-rays and series without readings are passed over. A second file with the same marks is a copy,
    one with other marks is a contradiction.
    """
    readings: dict[str, Reading] = {}
    faults = Faults()
    files = list(find_readings(src))
    logger.info(f"reading {len(files)} XML files in {src}")
    for path in files:
        with faults.caught():
            reading = parse_reading(path)
            if reading is None:
                continue
            first = readings.setdefault(reading.series_uid, reading)
            if first.digest != reading.digest:
                raise InputError(
                    f"'{path}' holds other marks of the series {reading.series_uid} than '{first.file}'; remove one."
                )
    places = locate_series(src, set(readings))
    of_patient: dict[str, list[tuple[Path, Reading]]] = defaultdict(list)
    for uid, reading in sorted(readings.items()):
        with faults.caught():
            if uid not in places:
                raise InputError(
                    f"'{reading.file}' names the series {uid}, which is not in '{src}'; add its DICOM files."
                )
            folder, patient = places[uid]
            if not patient:
                raise InputError(f"'{folder}' states no patient ID (0010,0020), by which to split; add it.")
            of_patient[patient].append((folder, reading))
    scans = []
    for patient, own in sorted(of_patient.items()):
        for number, (folder, reading) in enumerate(own, start=1):
            name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', patient)}_scan{number}"
            scans.append(Scan(name, patient, folder, reading))
    return scans, faults.sentences


def locate_series(src: Path, uids: set[str]) -> dict[str, tuple[Path, str]]:
    """The folder of each series and the patient's ID, by UID.

    The first header of each folder tells its series; only if one of ``uids`` is not among them, all headers are read.
    A damaged file is named later, when its series is read.
    """
    folders = []
    for root, inner, _ in os.walk(src):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folders.append(Path(root))

    def series_in(folder: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                with suppress(InputError):
                    header = read_dicom(path)
                    if header is not None and not other_kind(header)[0]:
                        yield str(header.SeriesInstanceUID), (folder, str(header.get("PatientID") or ""))

    places = dict(first for folder in reversed(folders) if (first := next(series_in(folder), None)))
    if not uids <= places.keys():
        every = [found for folder in folders for found in series_in(folder)]
        places = dict([*reversed(every), *places.items()])
    return places


def _read_scan(scan: Scan, output: Path, size_mm: float) -> tuple[list[Row], list[str]]:
    """The rows of a scan and one sentence for all that is left out of it; the cubes are written."""
    if not scan.reading.marks:
        return [], []
    done = output / DONE / f"{scan.name}.json"
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in scan.folder.iterdir())
    content = repr((_FORMAT, scan.name, scan.reading.digest, files, size_mm, SPACING_MM))
    key = hashlib.sha256(content.encode()).hexdigest()  # changes with all that the scan's cubes and rows depend on
    if done.is_file():
        known = read_json(done)
        cubes = [output / part / f"{row['nodule']}.nii.gz" for row in known["rows"] for part in _PARTS]
        if known["key"] == key and all(cube.is_file() for cube in cubes):
            return known["rows"], known["problems"]
    try:
        series = _series_of(scan)
    except InputError as error:
        return [], [f"'{scan.reading.file}': {error}"]
    outlined, problems, rows = [], [], []
    for mark in scan.reading.marks:
        try:
            check_malignancy(mark)
            outlined.append(Outlined(mark, mark_voxels(mark, series)))
        except InputError as error:
            problems.append(f"'{scan.reading.file}': {error}")
    nodules = cluster_marks(outlined, volume_shape(series), series.spacing)
    for number, nodule in enumerate(nodules, start=1):
        name = f"{scan.name}_nodule{number}"
        try:
            cube = cut_cube(series, nodule.voxels, size_mm)
        except InputError as error:
            problems.append(f"'{scan.reading.file}', {nodule.members[0].mark}: {error}")
            continue
        cube.write(*(output / part / f"{name}.nii.gz" for part in _PARTS))
        volume = volume_mm3(nodule.voxels, series.spacing)
        ratings = nodule.median_ratings()
        rows.append(
            {
                "nodule": name,
                "scan": scan.name,
                "patient": scan.patient,
                "malignancy": ratings.pop("malignancy"),
                "readers": len(nodule.readers),
                "malignancy_ratings": ";".join(map(str, nodule.ratings("malignancy"))),
                **ratings,
                "volume_mm3": round(volume, 2),
                "diameter_mm": round(2 * (0.75 / math.pi * volume) ** (1 / 3), 2),
                **{f"center_{axis}": round(float(value), 3) for axis, value in zip("xyz", cube.center)},
                **{f"spacing_{axis}": round(float(value), 4) for axis, value in zip("xyz", series.spacing)},
                "padded": round(cube.padded, 4),
                "series_uid": series.uid,
            }
        )
    if len(rows) == len(nodules):  # a file that could not be read is tried again
        write_json(done, {"key": key, "rows": rows, "problems": problems})
    return rows, problems


def _series_of(scan: Scan) -> DicomSeries:
    found = find_series(scan.folder)
    others = [str(series) for series in found if series.uid != scan.reading.series_uid]
    if others:
        logger.info(f"'{scan.folder}' also holds the series {', '.join(others)}; the readings refer to the other one")
    (series,) = (series for series in found if series.uid == scan.reading.series_uid)
    if series.modality != "CT":
        raise InputError(f"the series {series} in '{series.folder}' is not a CT; give the series that was read.")
    series = without_copies(series, any_content=True)  # as pylidc does
    for remark in series.remarks:
        logger.warning(remark)
    check_series(series)
    if min(series.spacing) <= 0:
        raise InputError(f"the series {series} in '{series.folder}' states no pixel spacing (0028,0030); add it.")
    return series
