"""From the readers' XML files to nodules: what is taken, what is inside an outline, which marks are one nodule."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from lidc_files import FLIP_Z, SMALL, Chest, Drawn, Roi, outline
from scipy import ndimage

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import DicomSeries
from med3d_ext.io.dicom_series import single_series
from med3d_ext.tools.lidc.nodules import (
    Nodule,
    Outlined,
    cluster_marks,
    enclosed_pixels,
    mark_voxels,
    volume_mm3,
    volume_shape,
)
from med3d_ext.tools.lidc.xml import Contour, Mark, check_malignancy, find_readings, is_lidc, parse_reading

SQUARE = [(3, 5), (4, 5), (5, 5), (5, 6), (5, 7), (4, 7), (3, 7), (3, 6)]
NODULE = Drawn([Roi(4, SQUARE), Roi(5, SQUARE), Roi(5, SQUARE[:4], "FALSE")], malignancy=4, name="IL057_1")
CHEST = Chest()


def edited(path: Path, pattern: str, replacement: str) -> Path:
    text = path.read_text()
    assert re.search(pattern, text), pattern
    path.write_text(re.sub(pattern, replacement, text, count=1))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        parse_reading(path)
    message = str(error.value)
    assert message.startswith(f"'{path}'") and message.endswith(".") and "\n" not in message, message
    return message


def test_a_file_holds_the_marks_of_every_reader(tmp_path: Path) -> None:
    reading = parse_reading(CHEST.write_xml(tmp_path / "a.xml", [NODULE, SMALL], [], [NODULE]))
    assert reading is not None
    assert (reading.series_uid, reading.small, reading.other) == ("1.2.3", 1, 3)
    assert [(mark.reader, mark.name) for mark in reading.marks] == [(1, "IL057_1"), (3, "IL057_1")]
    first, second, hole = reading.marks[0].contours
    np.testing.assert_array_equal(first.points, SQUARE)
    assert (first.sop_uid, first.z, first.inclusion) == ("1.2.3.4", -120.0, True)
    assert (second.sop_uid, hole.sop_uid, hole.inclusion) == ("1.2.3.5", "1.2.3.5", False)
    assert reading.marks[0].ratings == {
        "subtlety": 5,
        "internalStructure": 1,
        "calcification": 6,
        "sphericity": 3,
        "margin": 4,
        "lobulation": 2,
        "spiculation": 1,
        "texture": 5,
        "malignancy": 4,
    }


def test_one_point_is_a_nodule_below_3_mm_whatever_its_ratings(tmp_path: Path) -> None:
    rated = Drawn([Roi(4, [(9, 9)])], malignancy=2)
    reading = parse_reading(CHEST.write_xml(tmp_path / "a.xml", [SMALL, rated]))
    assert reading is not None and (reading.small, reading.marks) == (2, ())


def test_a_file_without_namespace_is_read_alike(tmp_path: Path) -> None:
    path = edited(CHEST.write_xml(tmp_path / "a.xml", [NODULE]), ' xmlns="http://www.nih.gov"', "")
    reading = parse_reading(path)
    assert reading is not None and len(reading.marks) == 1


def test_chest_x_rays_and_other_xml_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "xray.xml").write_text(
        '<IdriReadMessage xmlns="http://www.nih.gov"><CXRreadingSession/></IdriReadMessage>'
    )
    (tmp_path / "other.xml").write_text("<a/>")
    assert parse_reading(tmp_path / "xray.xml") is None
    assert parse_reading(tmp_path / "other.xml") is None
    assert not is_lidc(tmp_path)
    CHEST.write_xml(tmp_path / "deep" / "er" / "069.XML", [NODULE])
    CHEST.write_xml(tmp_path / ".hidden" / "1.xml", [NODULE])
    assert is_lidc(tmp_path)
    assert [path.name for path in find_readings(tmp_path)] == ["069.XML", "other.xml", "xray.xml"]


@pytest.mark.parametrize(
    ("pattern", "replacement", "words"),
    [
        ("</LidcReadMessage>", "", "cannot be read as XML"),
        ("<SeriesInstanceUid>.*?</SeriesInstanceUid>", "", "names no series"),
        ("<malignancy>4", "<malignancy>high", "nodule 'IL057_1' of reader 1, states 'high' as malignancy"),
        ("<inclusion>TRUE", "<inclusion>MAYBE", "states 'MAYBE' as inclusion"),
        ("<xCoord>3", "<xCoord>three", "states 'three' as xCoord"),
        ("<xCoord>3", "<xCoord>3.5", "must be whole numbers"),
        ("<yCoord>5</yCoord>", "", "states '' as yCoord"),
        ("<imageZposition>-120", "<imageZposition>low", "as imageZposition"),
    ],
)
def test_what_contradicts_the_schema_is_refused_by_name(
    tmp_path: Path, pattern: str, replacement: str, words: str
) -> None:
    path = edited(CHEST.write_xml(tmp_path / "a.xml", [NODULE]), pattern, replacement)
    assert words in refusal(path)


@pytest.mark.parametrize(("malignancy", "words"), [(None, "has no rating of malignancy"), (0, "has the malignancy 0")])
def test_a_mark_without_a_usable_malignancy_is_refused(tmp_path: Path, malignancy: int | None, words: str) -> None:
    reading = parse_reading(CHEST.write_xml(tmp_path / "a.xml", [Drawn(NODULE.rois, malignancy)]))
    assert reading is not None
    with pytest.raises(InputError, match=f"nodule 'Nodule 001' of reader 1 {words}"):
        check_malignancy(reading.marks[0])


# Outlines on voxels

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


# Which marks are one nodule

GROUND, SPACING = (40, 20, 10), (1.0, 1.0, 2.0)
GRID = np.stack(np.meshgrid(*map(np.arange, GROUND), indexing="ij"), axis=-1)


def ball(reader: int, center: tuple[float, float, float], radius: float, malignancy: int = 3, **ratings) -> Outlined:
    """A reader's mark; center in voxels, radius in mm."""
    inside = np.linalg.norm((GRID - center) * SPACING, axis=-1) <= radius
    return Outlined(Mark(reader, f"{reader}", {"malignancy": malignancy, **ratings}, ()), np.flatnonzero(inside))


def readers(marks: list[Outlined]) -> list[list[int]]:
    return [nodule.readers for nodule in cluster_marks(marks, GROUND, SPACING)]


def test_two_nodules_are_kept_apart_and_in_order_of_place() -> None:
    right = [ball(n, (30, 9, 5), 4) for n in (1, 3)]
    left = [ball(n, (10, 9, 5), 4) for n in (1, 2, 4)]
    assert readers(right + left) == [[1, 2, 4], [1, 3]]


def test_the_order_of_the_marks_does_not_matter() -> None:
    marks = [ball(1, (9, 9, 5), 4), ball(2, (11, 9, 5), 4), ball(2, (16, 9, 5), 4), ball(3, (13, 9, 5), 5)]
    groups = {
        frozenset(tuple(nodule.voxels) for nodule in cluster_marks(order, GROUND, SPACING))
        for order in itertools.permutations(marks)
    }
    assert len(groups) == 1


def test_a_reader_has_at_most_one_mark_in_a_nodule() -> None:
    """Reader 1 saw two nodules where the others saw one: the one that overlaps more is the same."""
    pieces = [ball(1, (8, 9, 5), 3), ball(1, (14, 9, 5), 4)]
    whole = [ball(reader, (12, 9, 5), 7) for reader in (2, 3, 4)]
    nodules = sorted(cluster_marks([*pieces, *whole], GROUND, SPACING), key=lambda nodule: len(nodule.readers))
    assert [nodule.readers for nodule in nodules] == [[1], [1, 2, 3, 4]]
    assert nodules[1].members[0] is pieces[1]


def test_marks_without_a_shared_voxel_match_by_distance() -> None:
    one, other = ball(1, (10, 9, 5), 0.5), ball(2, (11, 9, 5), 1.5)
    other = Outlined(other.mark, np.setdiff1d(other.voxels, one.voxels))
    assert readers([one, other]) == [[1, 2]]
    nodule = cluster_marks([one, other], GROUND, SPACING)[0]
    assert nodule.voxels.size == one.voxels.size + other.voxels.size
    assert readers([ball(1, (10, 9, 5), 2), ball(2, (15, 9, 5), 2)]) == [[1], [2]]


def test_a_chain_of_neighbors_is_not_one_nodule() -> None:
    """Each overlaps the next; the two ends have nothing in common with each other."""
    chain = [ball(n, (6 + 6 * n, 9, 5), 4) for n in (1, 2, 3, 4)]
    assert readers(chain) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_consensus_is_what_at_least_half_of_the_readers_enclose(count: int, needed: int) -> None:
    marks = [ball(n, (8 + n, 9, 5), 5) for n in range(1, count + 1)]
    (nodule,) = cluster_marks(marks, GROUND, SPACING)
    votes = sum(np.isin(np.arange(np.prod(GROUND)), each.voxels).astype(int) for each in marks)
    np.testing.assert_array_equal(nodule.voxels, np.flatnonzero(votes >= needed))


def test_ratings_are_the_medians_of_the_readers() -> None:
    members = (ball(1, (9, 9, 5), 4, 3, texture=5), ball(2, (9, 9, 5), 4, 4), ball(4, (9, 9, 5), 4, 5, texture=2))
    nodule = Nodule(members, members[0].voxels)
    ratings = nodule.median_ratings()
    assert (ratings["malignancy"], ratings["texture"], ratings["margin"]) == (4.0, 3.5, None)
    assert nodule.ratings("malignancy") == [3, 4, 5]
    assert Nodule(members[:2], members[0].voxels).median_ratings()["malignancy"] == 3.5


def test_volume_is_in_cubic_millimeters() -> None:
    assert volume_mm3(ball(1, (20, 9, 5), 4).voxels, SPACING) == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.1)
