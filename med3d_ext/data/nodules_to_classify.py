"""What the inference of nodules runs on: a folder of cubes, or scans with a list of points."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.data.datalists import list_images
from med3d_ext.data.prepared_data import generated_phantoms
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import read_table
from med3d_ext.io.image_files import is_dicom_input, read_header
from med3d_ext.transforms.crops import point_from_corner
from med3d_ext.transforms.load import load_volume

logger = logging.getLogger("med3d_ext.classify")
SPACES = {"RAS": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0)}
POINTS_PER_ITEM = 16  # cubes of one scan that go through the network at once


class NodulesToClassify:
    """The items of an inference, and what was left out (``skipped``, a sentence for each).

    Without ``points`` every image is a cube with the nodule in its middle. With ``points`` the images are scans: an
    item is a scan with up to 16 ``centers`` (mm, RAS) and their ``names``, for
    :class:`med3d_ext.transforms.CropCubed`.

    Args:
        dataset_dir: a folder of images (NIfTI, NRRD, MHA, folders of DICOM series), or one of them. None means
            generated phantoms.
        points: CSV with the columns ``x``, ``y``, ``z`` (mm) and perhaps ``name``; with several scans also ``image``,
            the file's name. Defaults to None.
        point_space: the points' axes: "RAS" (x to the patient's right, y to the front; NIfTI) or "LPS" (x to the left,
            y to the back; DICOM, ITK).
        skip_bad: leave out points outside of their scan, and unreadable images, instead of refusing.
    """

    def __init__(
        self, dataset_dir: str | None, points: str | None = None, point_space: str = "RAS", skip_bad: bool = False
    ) -> None:
        if point_space not in SPACES:
            raise InputError(f"point_space must be one of {', '.join(SPACES)}, got {point_space!r}.")
        if dataset_dir is None:
            dataset_dir = str(generated_phantoms("nodules", True, "classifying"))
        faults = Faults(skip_bad)
        self.items: list[dict[str, Any]] = []
        images = [item["image"] for item in list_images(dataset_dir)]
        if points is None:
            for image in images:
                with faults.caught() if skip_bad else nullcontext():
                    if skip_bad:  # else it is read once, and refused there
                        load_volume(image)
                    self.items.append({"image": image})
        else:
            inside: dict[str, list[dict[str, Any]]] = {}
            for row in read_points(points, point_space):
                image = _image_of(row, images, points)
                with faults.caught() if skip_bad else nullcontext():
                    _check_inside(row, image, point_space)
                    inside.setdefault(image, []).append(row)
            for image, rows in inside.items():
                for first in range(0, len(rows), POINTS_PER_ITEM):
                    part = rows[first : first + POINTS_PER_ITEM]
                    names = [row["name"] for row in part]
                    self.items.append({"image": image, "centers": [row["center"] for row in part], "names": names})
        self.skipped = faults.sentences
        for sentence in self.skipped:
            logger.warning(f"skipped: {sentence}")
        if not self.items:
            raise InputError(f"all of '{points or dataset_dir}' was skipped: {self.skipped[0]}")


def read_points(path: str | Path, point_space: str = "RAS") -> list[dict[str, Any]]:
    """The points of a table: ``name``, ``center`` (mm, RAS), ``image`` (None where no column says) and ``where``."""
    points = []
    for number, (line, row) in enumerate(read_table(path, "xyz"), start=1):
        name = row.get("name") or str(number)
        where = f"point '{name}' (line {line} of '{path}')"
        try:
            center = [sign * float(row[axis]) for axis, sign in zip("xyz", SPACES[point_space])]
        except ValueError:
            center = [math.nan]
        if not np.isfinite(center).all():
            raise InputError(f"{where} has a coordinate that is not a number; correct it.")
        image = row.get("image") or None
        points.append({"name": name, "center": center, "image": image, "where": where})
    return points


def _image_of(row: dict[str, Any], images: Sequence[str], points: str) -> str:
    """The scan that a point belongs to."""
    if row["image"] is None and len(images) > 1:
        raise InputError(f"'{points}' needs a column 'image' that names each point's scan: there are {len(images)}.")
    parts = Path(row["image"] or "").parts
    found = [image for image in images if not parts or Path(image).parts[-len(parts) :] == parts]
    if not found:
        raise InputError(f"{row['where']} names the image '{row['image']}', which is not among the scans; correct it.")
    if len(found) > 1:
        raise InputError(
            f"{row['where']} names the image '{row['image']}', and {len(found)} scans are called so, '{found[0]}' and "
            f"'{found[1]}' first; name its folder, too: {'/'.join(Path(found[0]).parts[-2:])}."
        )
    return found[0]


@lru_cache(maxsize=2)
def _geometry(image: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape, of NIfTI files from the header alone."""
    if is_dicom_input(image):
        volume = load_volume(image)
        return np.asarray(volume.affine, dtype=float), tuple(volume.shape[1:])
    header = read_header(image)
    return header.affine, header.shape[:3]


def _check_inside(row: dict[str, Any], image: str, point_space: str) -> None:
    (x, y, z), geometry = row["center"], _geometry(image)
    if point_from_corner(*geometry, [x, y, z]) is None:
        other = "LPS" if point_space == "RAS" else "RAS"
        is_mirrored = point_from_corner(*geometry, [-x, -y, z]) is not None
        hint = f"with --point_space {other} it would be inside" if is_mirrored else "correct it, or --skip_bad true"
        raise InputError(f"{row['where']} is outside '{image}'; {hint}.")
