"""LIDC-IDRI in small: DICOM scans with balls in them, and readers' XML after the public schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from dicom_files import write_series
from scipy import ndimage

FLIP_Z = np.diag([1.0, 1.0, -1.0])
Point = tuple[int, int]


@dataclass(frozen=True)
class Roi:
    """One outline: slice number as stored, pixels, and what the XML states about them."""

    number: int
    points: Sequence[Point]
    inclusion: str = "TRUE"


@dataclass(frozen=True)
class Drawn:
    """One reader's nodule; ``malignancy`` None leaves the characteristics out."""

    rois: Sequence[Roi]
    malignancy: int | None = 3
    name: str = "Nodule 001"


@dataclass
class Chest:
    """A scan to write: lung with balls of soft tissue.

    Args:
        shape: voxels along x, y and slices.
        spacing: mm.
        directions: columns are the directions of x, y and of the slices as stored (LPS).
        origin: LPS position (mm) of the first voxel.
        uid: series UID.
        patient: patient's ID.
    """

    shape: tuple[int, int, int] = (64, 64, 20)
    spacing: tuple[float, float, float] = (0.8, 0.8, 2.5)
    directions: np.ndarray = field(default_factory=lambda: np.eye(3))
    origin: tuple[float, float, float] = (-30.0, -20.0, -130.0)
    uid: str = "1.2.3"
    patient: str = "LIDC-IDRI-0001"

    def middle(self) -> np.ndarray:
        """LPS position (mm) of the middle of the scan."""
        return self.origin + self.directions @ (np.array(self.spacing) * (np.array(self.shape) - 1) / 2)

    def ball(self, center: Sequence[float], radius: float) -> np.ndarray:
        """Voxels whose centers are inside of a ball (LPS, mm)."""
        grid = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1)
        places = (grid * self.spacing) @ np.asarray(self.directions).T + self.origin
        return np.linalg.norm(places - np.asarray(center), axis=-1) <= radius

    def write(self, folder: Path, *balls: np.ndarray, **options) -> Path:
        """Write the DICOM files; ``options`` as of :func:`dicom_files.write_series`."""
        voxels = np.full(self.shape, 174, np.int16)  # -850 HU
        for ball in balls:
            voxels[ball] = 1074  # 50 HU
        tags = {"PatientID": self.patient, "RescaleIntercept": -1024, **options.pop("tags", {})}
        return write_series(folder, voxels, self.spacing, self.origin, self.directions, self.uid, tags=tags, **options)

    def z(self, number: int) -> float:
        """z (mm) of a slice as stored."""
        return float((self.origin + self.directions[:, 2] * self.spacing[2] * number)[2])

    def write_xml(self, path: Path, *readers: Sequence[Drawn], head: str | None = None) -> Path:
        """Write a file of readings, each reader a list of nodules.

        Args:
            path: the file.
            readers: nodules by reader.
            head: the element that names the series. Defaults to None: this scan's.
        """
        head = f"<SeriesInstanceUid>{self.uid}</SeriesInstanceUid>" if head is None else head
        sessions = "".join(
            "<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous"
            f"</servicingRadiologistID>{''.join(map(self._nodule, reader))}{NON_NODULE}</readingSession>"
            for reader in readers
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1.3.6.1.4.1.14519.5.2.1.6279.6001.1" '
            'xmlns="http://www.nih.gov" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><ResponseHeader>'
            f"<Version>1.8.1</Version>{head}<StudyInstanceUID>1.2.1</StudyInstanceUID></ResponseHeader>"
            f"{sessions}</LidcReadMessage>"
        )
        return path

    def _nodule(self, drawn: Drawn) -> str:
        ratings = "" if drawn.malignancy is None else RATINGS.format(drawn.malignancy)
        rois = "".join(self._roi(roi) for roi in drawn.rois)
        return f"<unblindedReadNodule><noduleID>{drawn.name}</noduleID>{ratings}{rois}</unblindedReadNodule>"

    def _roi(self, roi: Roi) -> str:
        edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in roi.points)
        return (
            f"<roi><imageZposition>{self.z(roi.number):.6f} </imageZposition><imageSOP_UID>{self.uid}.{roi.number}"
            f"</imageSOP_UID><inclusion>{roi.inclusion}</inclusion>{edges}</roi>"
        )


RATINGS = (
    "<characteristics><subtlety>5</subtlety><internalStructure>1</internalStructure><calcification>6</calcification>"
    "<sphericity>3</sphericity><margin>4</margin><lobulation>2</lobulation><spiculation>1</spiculation>"
    "<texture>5</texture><malignancy>{}</malignancy></characteristics>"
)
NON_NODULE = (
    "<nonNodule><nonNoduleID>n</nonNoduleID><imageZposition>-100.0</imageZposition><imageSOP_UID>1</imageSOP_UID>"
    "<locus><xCoord>3</xCoord><yCoord>4</yCoord></locus></nonNodule>"
)
SMALL = Drawn([Roi(4, [(9, 9)])], malignancy=None, name="small")


def outline(mask: np.ndarray) -> list[Point]:
    """The pixels just outside of a convex mask (x, y), in their order."""
    ring = np.argwhere(ndimage.binary_dilation(mask) & ~mask)
    away = ring - np.argwhere(mask).mean(axis=0)
    order = np.argsort(np.arctan2(away[:, 1], away[:, 0]))
    return [tuple(map(int, point)) for point in ring[order]]


def drawn(mask: np.ndarray, malignancy: int | None = 3, name: str = "Nodule 001", inclusion: str = "TRUE") -> Drawn:
    """A reader's nodule from a mask (x, y, slice), an outline per slice."""
    numbers = np.flatnonzero(mask.any(axis=(0, 1)))
    rois = [Roi(int(number), outline(mask[:, :, number]), inclusion) for number in numbers]
    return Drawn(rois, malignancy, name)
