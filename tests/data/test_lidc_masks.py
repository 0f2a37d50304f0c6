"""Outlines on voxels: what is inside, holes, and outlines that do not fit their scan."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from lidc_files import FLIP_Z, Chest, outline
from scipy import ndimage

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
from med3d_ext.io.dicom_series import single_series
from med3d_ext.tools.lidc.nodules import enclosed_pixels, mark_voxels, volume_shape
from med3d_ext.tools.lidc.xml import Contour, Mark

SHAPE = (24, 20, 7)


def scan(folder: Path, directions: np.ndarray | None = None) -> DicomSeries:
    return single_series(
        Chest(SHAPE, (1.0, 1.0, 2.0), np.eye(3) if directions is None else directions, (0.0, 0.0, 0.0)).write(folder)
    )


def mark(*contours: Contour) -> Mark:
    return Mark(2, "7", {"malignancy": 3}, contours)


def contour(number: int, points: list, inclusion: bool = True, z: float = math.nan) -> Contour:
    return Contour(f"1.2.3.{number}", z, np.array(points).reshape(-1, 2), inclusion)


def disk(center: tuple[int, int], radius: float) -> np.ndarray:
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.hypot(x - center[0], y - center[1]) <= radius


def drawn(voxels: np.ndarray, series: DicomSeries) -> np.ndarray:
    mask = np.zeros(volume_shape(series), bool)
    mask.ravel()[voxels] = True
    return mask


def test_an_outline_encloses_what_lies_inside_and_not_its_own_pixels() -> None:
    """The outline is #, the nodule o.

    . # # # .
    # o o o #
    . # o # .
    . . # . .
    """
    points = [(1, 0), (2, 0), (3, 0), (4, 1), (3, 2), (2, 3), (1, 2), (0, 1)]
    expected = {(1, 1), (2, 1), (3, 1), (2, 2)}
    for order in (points, points[::-1], points[3:] + points[:3], [*points, points[0]]):
        assert set(map(tuple, enclosed_pixels(np.array(order) + [5, 6]) - [5, 6])) == expected


def test_gaps_between_the_points_are_closed_by_lines() -> None:
    assert len(enclosed_pixels(np.array([(0, 0), (6, 0), (6, 4), (0, 4)]))) == 5 * 3


def test_an_outline_that_touches_itself_encloses_both_parts() -> None:
    left = [(2, 2), (1, 1), (0, 2), (1, 3)]
    right = [(2, 2), (3, 3), (4, 2), (3, 1)]
    assert set(map(tuple, enclosed_pixels(np.array(left + right)))) == {(1, 2), (3, 2)}


@pytest.mark.parametrize("points", [[(3, 3)], [(3, 3), (4, 4)], [(3, 3), (3, 4), (4, 4), (4, 3)]])
def test_points_without_an_inside_enclose_nothing(points: list) -> None:
    assert len(enclosed_pixels(np.array(points))) == 0


def test_outlines_give_back_the_mask_that_they_were_drawn_around(tmp_path: Path) -> None:
    series = scan(tmp_path)
    disks = {2: disk((9, 9), 3.2), 3: disk((10, 9), 5.1), 4: disk((11, 8), 2.0)}
    voxels = mark_voxels(mark(*(contour(number, outline(each)) for number, each in disks.items())), series)
    expected = np.stack([disks.get(number, np.zeros(SHAPE[:2], bool)) for number in range(SHAPE[2])], axis=-1)
    np.testing.assert_array_equal(drawn(voxels, series), expected)
    assert (np.diff(voxels) > 0).all()


def test_an_exclusion_cuts_out_its_inside_and_its_own_pixels(tmp_path: Path) -> None:
    series = scan(tmp_path)
    whole, hole = disk((10, 10), 7), disk((11, 9), 2.5)
    voxels = mark_voxels(mark(contour(3, outline(hole), False), contour(3, outline(whole))), series)
    np.testing.assert_array_equal(drawn(voxels, series)[:, :, 3], whole & ~ndimage.binary_dilation(hole))


def test_outlines_lie_in_the_slice_of_their_uid_in_both_orders(tmp_path: Path) -> None:
    for name, directions, expected in (("up", np.eye(3), 2), ("down", FLIP_Z, 4)):
        series = scan(tmp_path / name, directions)
        voxels = mark_voxels(mark(contour(2, outline(disk((9, 9), 3)))), series)
        assert np.unique(voxels % SHAPE[2]).tolist() == [expected]


def test_without_a_known_uid_the_position_decides(tmp_path: Path) -> None:
    series = scan(tmp_path)
    ring = np.array(outline(disk((9, 9), 3)))
    for uid in ("", "9.9"):
        voxels = mark_voxels(mark(Contour(uid, 6.2, ring)), series)
        assert np.unique(voxels % SHAPE[2]).tolist() == [3]


RING = outline(disk((9, 9), 3))


@pytest.mark.parametrize(
    ("contours", "words"),
    [
        ([contour(99, RING, z=41.0)], "outside the volume, at z = 41 mm (slice '1.2.3.99')"),
        ([contour(99, RING, z=7.0)], "the slices are from 0 to 12 mm"),
        ([contour(99, RING)], "at z = nan mm"),
        ([contour(3, [(21, 3), (24, 5), (21, 7)])], "x 21 to 24 and y 3 to 7 in a slice of 24x20 ('3.dcm')"),
        ([contour(3, [(5, -1), (7, 3), (3, 3)])], "outside the volume: x 3 to 7 and y -1 to 3"),
        ([contour(3, [])], "an outline without points"),
        ([contour(3, [(3, 3), (4, 4)])], "encloses no voxel"),
        ([contour(3, RING), contour(3, RING, False)], "encloses no voxel"),
        ([contour(0, RING), contour(1, RING)], "is in the first slice of the scan"),
        ([contour(6, RING)], "is in the last slice of the scan"),
    ],
)
def test_outlines_that_do_not_fit_the_scan_are_refused(tmp_path: Path, contours: list[Contour], words: str) -> None:
    with pytest.raises(InputError) as error:
        mark_voxels(mark(*contours), scan(tmp_path))
    message = str(error.value)
    assert message.startswith("nodule '7' of reader 2 ") and words in message and message.endswith("."), message
