"""The scans of LIDC-IDRI in a folder: every file of readings with the folder of the series that it names."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import other_kind, read_dicom
from med3d_ext.tools.lidc.xml import Reading, find_readings, parse_reading

logger = logging.getLogger("med3d_ext.prepare")


@dataclass(frozen=True)
class Scan:
    """A CT scan with its readings.

    Args:
        name: the patient's ID and the number of the scan among the patient's, fit for file names.
        patient: the patient's ID.
        folder: the folder of the DICOM files.
        reading: what the readers marked.
    """

    name: str
    patient: str
    folder: Path
    reading: Reading


@dataclass(frozen=True)
class Place:
    """Where a series lies and whose it is."""

    folder: Path
    patient: str


def find_scans(src: Path) -> tuple[list[Scan], list[str]]:
    """The scans below a folder, sorted by name, and one sentence for each file of readings that gives none.

    Readings of chest X-rays and series without readings are passed over.
    """
    readings, problems = _readings(src)
    places = locate_series(src, set(readings))
    of_patient: dict[str, list[Reading]] = defaultdict(list)
    for uid, reading in sorted(readings.items()):
        if uid not in places:
            problems.append(f"'{reading.file}' names the series {uid}, which is not in '{src}'; add its DICOM files.")
        elif not places[uid].patient:
            problems.append(f"'{places[uid].folder}' states no patient ID (0010,0020), by which to split; add it.")
        else:
            of_patient[places[uid].patient].append(reading)
    scans = []
    for patient, own in sorted(of_patient.items()):
        for number, reading in enumerate(own, start=1):
            name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', patient)}_scan{number}"
            scans.append(Scan(name, patient, places[reading.series_uid].folder, reading))
    return scans, problems


def locate_series(src: Path, uids: set[str]) -> dict[str, Place]:
    """The folder of each series, by UID.

    The first header of each folder tells its series; only if one of ``uids`` is not among them, all headers are read.
    """
    places: dict[str, Place] = {}
    folders = list(_folders(src))
    for folder in folders:
        for header in _headers(folder):
            places.setdefault(str(header.SeriesInstanceUID), Place(folder, str(header.get("PatientID") or "")))
            break
    if not uids <= places.keys():
        for folder in folders:
            for header in _headers(folder):
                places.setdefault(str(header.SeriesInstanceUID), Place(folder, str(header.get("PatientID") or "")))
    return places


def _readings(src: Path) -> tuple[dict[str, Reading], list[str]]:
    """Readings by series; a second file with the same marks is a copy, one with other marks is a contradiction."""
    readings: dict[str, Reading] = {}
    problems = []
    files = list(find_readings(src))
    logger.info(f"reading {len(files)} XML files in {src}")
    for path in files:
        try:
            reading = parse_reading(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if reading is None:
            continue
        first = readings.setdefault(reading.series_uid, reading)
        if first.digest != reading.digest:
            problems.append(
                f"'{path}' holds other marks of the series {reading.series_uid} than '{first.file}'; remove one."
            )
    return readings, problems


def _folders(src: Path) -> Iterator[Path]:
    for root, folders, _ in os.walk(src):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(root)


def _headers(folder: Path) -> Iterator[Any]:
    """Headers of the images of one folder. A damaged file is named later, when its series is read."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with suppress(InputError):
                header = read_dicom(path)
                if header is not None and not other_kind(header)[0]:
                    yield header
