"""Readers' XML files: what is taken from them, what is passed over, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from lidc_files import SMALL, Chest, Drawn, Roi

from med3d_ext.errors import InputError
from med3d_ext.tools.lidc.xml import check_malignancy, find_readings, is_lidc, parse_reading

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
