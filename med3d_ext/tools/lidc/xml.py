"""What the readers of LIDC-IDRI marked: one XML file per CT scan, up to four readers in it.

Schema: https://wiki.cancerimagingarchive.net/display/Public/LIDC-IDRI (namespace http://www.nih.gov).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from med3d_ext.errors import InputError

CHARACTERISTICS = (
    *("subtlety", "internalStructure", "calcification", "sphericity"),
    *("margin", "lobulation", "spiculation", "texture", "malignancy"),
)
_CT = "LidcReadMessage"  # chest X-rays have IdriReadMessage


@dataclass(frozen=True)
class Contour:
    """One outline in one slice."""

    sop_uid: str  # of the slice; may be empty
    z: float  # position of the slice as the file states it, mm; NaN if it states none
    points: np.ndarray  # pixels, (n, 2): x (column) and y (row), counted from 0
    inclusion: bool = True  # whether it encloses nodule; otherwise it cuts a hole


@dataclass(frozen=True)
class Mark:
    """One reader's outline of one nodule of 3 mm or more."""

    reader: int  # number of the reading session, from 1 on; it names no person, and no reader across scans
    name: str  # the reader's own name for the nodule
    ratings: dict[str, int]  # characteristic to rating, without those that are missing
    contours: tuple[Contour, ...]  # slice by slice

    def __str__(self) -> str:
        return f"nodule '{self.name}' of reader {self.reader}"


@dataclass(frozen=True)
class Reading:
    """One file: the CT series that was read, the nodules of 3 mm or more that all readers marked, and how many marks
    are ``small``, of nodules below 3 mm (one point and no rating), or of ``other`` things than nodules.
    """

    file: Path
    series_uid: str
    marks: tuple[Mark, ...]
    small: int
    other: int

    @property
    def digest(self) -> str:
        """Of all marks. The published files hold some readings several times, under different headers."""
        digest = hashlib.sha256()
        for mark in self.marks:
            digest.update(repr((mark.reader, mark.name, sorted(mark.ratings.items()))).encode())
            for contour in mark.contours:
                digest.update(repr((contour.sop_uid, contour.z, contour.inclusion, contour.points.tolist())).encode())
        return digest.hexdigest()


def find_readings(folder: str | os.PathLike) -> Iterator[Path]:
    """The XML files of a folder and the folders in it, sorted; hidden ones excepted."""
    for path in sorted(Path(folder).rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() == ".xml" and not hidden and path.is_file():
            yield path


def is_lidc(folder: str | os.PathLike) -> bool:
    """Whether the folder, or one in it, holds an XML file of CT readings."""
    for path in find_readings(folder):
        with open(path, "rb") as file:
            if _CT.encode() in file.read(4096):
                return True
    return False


def parse_reading(path: str | os.PathLike) -> Reading | None:
    """Read one file; None for readings of chest X-rays and for XML of another kind."""
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"'{path}' cannot be read as XML ({error}); restore the file.") from error
    if _local(root) != _CT:
        return None
    uid = next((each.text for each in root.iter() if _local(each).lower() == "seriesinstanceuid"), "") or ""
    if not uid.strip():
        raise InputError(f"'{path}' names no series (SeriesInstanceUid); restore the file.")
    found, other = [], 0
    for reader, session in enumerate(root.findall("{*}readingSession"), 1):
        found += [_mark(path, reader, each) for each in session.findall("{*}unblindedReadNodule")]
        other += len(session.findall("{*}nonNodule"))
    # The schema marks a nodule below 3 mm by one point; some of them state ratings all the same.
    marks = tuple(mark for mark in found if sum(len(contour.points) for contour in mark.contours) > 1)
    return Reading(path, uid.strip(), marks, len(found) - len(marks), other)


def check_malignancy(mark: Mark) -> None:
    """Refuse a mark that a classifier cannot learn from."""
    rating = mark.ratings.get("malignancy")
    if rating is None:
        raise InputError(f"{mark} has no rating of malignancy; add it or remove the mark.")
    if not 1 <= rating <= 5:
        raise InputError(f"{mark} has the malignancy {rating}; ratings must be from 1 to 5: correct it.")


def _mark(path: Path, reader: int, element: ElementTree.Element) -> Mark:
    name = _text_of(element, "noduleID") or "?"
    where = f"'{path}', nodule '{name}' of reader {reader},"
    ratings: dict[str, int] = {}
    for each in element.findall("{*}characteristics/*"):
        text = (each.text or "").strip()
        if _local(each) in CHARACTERISTICS and text:
            if not text.lstrip("-").isdigit():
                raise InputError(f"{where} states '{text}' as {_local(each)}, which must be a number; correct it.")
            ratings[_local(each)] = int(text)
    contours = []
    for roi in element.findall("{*}roi"):
        inclusion = (_text_of(roi, "inclusion") or "TRUE").upper()
        if inclusion not in ("TRUE", "FALSE"):
            raise InputError(f"{where} states '{inclusion}' as inclusion, which must be TRUE or FALSE; correct it.")
        points = [[_number(where, edge, axis) for axis in ("xCoord", "yCoord")] for edge in roi.findall("{*}edgeMap")]
        if any(not value.is_integer() for point in points for value in point):
            raise InputError(
                f"{where} has an outline off the pixels; xCoord and yCoord must be whole numbers: correct it."
            )
        z = _number(where, roi, "imageZposition") if _text_of(roi, "imageZposition") else math.nan
        pixels = np.array(points, dtype=int).reshape(-1, 2)
        contours.append(Contour(_text_of(roi, "imageSOP_UID"), z, pixels, inclusion == "TRUE"))
    return Mark(reader, name, ratings, tuple(contours))


def _number(where: str, element: ElementTree.Element, name: str) -> float:
    text = _text_of(element, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} states '{text}' as {name}, which must be a number; correct it.")
    return value


def _local(element: ElementTree.Element) -> str:
    """The tag without its namespace, which some copies lack."""
    return element.tag.rpartition("}")[2]


def _text_of(element: ElementTree.Element, name: str) -> str:
    return element.findtext("{*}" + name, "").strip()
