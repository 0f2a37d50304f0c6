"""LIDC-IDRI from DICOM and XML to a folder of nodules: geometry, clustering, and each kind of bad input."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from lidc_files import FLIP_Z, SMALL, Chest, Drawn, Roi, drawn

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.tools.lidc import prepare as lidc
from med3d_ext.tools.lidc.prepare import nodules_folder, read_lidc

RADIUS = 7.0
SAGITTAL = np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])


def write_patient(src: Path, chest: Chest, malignancies: tuple[int | None, ...] = (4, 3, 5), **options: Any) -> Path:
    """One scan with a ball off its middle, drawn by several readers; returns the folder of its files."""
    folder = src / chest.patient / "study" / f"series-{chest.uid}"
    ball = chest.ball(chest.middle() + [4.3, -3.1, 2.2], RADIUS)
    chest.write(folder, ball, **options)
    chest.write_xml(folder / "069.xml", *([drawn(ball, each), SMALL] for each in malignancies))
    return folder


def rows_of(output: Path) -> list[dict[str, str]]:
    with open(output / "nodules.csv", newline="") as file:
        return list(csv.DictReader(file))


def prepared(src: Path, output: Path, **options: Any) -> list[dict[str, str]]:
    assert read_lidc(src, output, size_mm=options.pop("size_mm", 24), **options) == output
    return rows_of(output)


def refusal(src: Path, output: Path) -> str:
    with pytest.raises(InputError) as error:
        prepared(src, output)
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    assert not (output / "nodules.csv").exists()
    return message


@pytest.mark.parametrize(
    ("shape", "spacing", "directions"),
    [
        ((64, 64, 40), (1.0, 1.0, 1.0), np.eye(3)),
        ((72, 60, 24), (0.6, 0.8, 2.5), np.eye(3)),
        ((72, 60, 24), (0.6, 0.8, 2.5), FLIP_Z),
        ((60, 60, 30), (0.8, 0.8, 1.5), SAGITTAL),
        ((60, 60, 30), (0.8, 0.8, 1.5), SAGITTAL @ FLIP_Z),
    ],
)
def test_a_ball_comes_out_in_the_middle_of_its_cube_with_its_volume(
    tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], directions: np.ndarray
) -> None:
    chest = Chest(shape, spacing, directions)
    center = chest.middle() + [4.3, -3.1, 2.2]
    write_patient(tmp_path / "src", chest)
    (row,) = prepared(tmp_path / "src", tmp_path / "out", size_mm=32)

    image, mask = (nibabel.load(tmp_path / "out" / part / f"{row['nodule']}.nii.gz") for part in ("images", "masks"))
    assert (image.shape, image.get_data_dtype(), mask.get_data_dtype()) == ((32, 32, 32), np.int16, np.uint8)
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_array_equal(image.affine[:3, :3], np.eye(3))
    ct, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj).astype(bool)
    expected = 4 / 3 * np.pi * RADIUS**3
    for body in (inside, ct > -400):  # the mask and the ball in the CT itself, each by its own way
        world = nibabel.affines.apply_affine(image.affine, np.argwhere(body).mean(axis=0))
        assert np.linalg.norm(world - center * [-1, -1, 1]) < 0.5
        assert np.abs(np.argwhere(body).mean(axis=0) - 15.5).max() < 0.5
        assert body.sum() == pytest.approx(expected, rel=0.1)
    assert (ct[inside].mean(), ct[:6].mean()) == (pytest.approx(50, abs=100), pytest.approx(-850, abs=1))
    assert float(row["volume_mm3"]) == pytest.approx(expected, rel=0.1)
    assert float(row["diameter_mm"]) == pytest.approx(2 * RADIUS, rel=0.05)
    assert [float(row[f"center_{axis}"]) for axis in "xyz"] == pytest.approx(center * [-1, -1, 1], abs=0.5)
    assert [float(row[f"spacing_{axis}"]) for axis in "xyz"] == pytest.approx(spacing)


def test_the_table_states_median_ratings_and_readers(tmp_path: Path) -> None:
    write_patient(tmp_path / "src", Chest(), (5, 3, 4, 3))
    (row,) = prepared(tmp_path / "src", tmp_path / "out")
    assert list(row)[:6] == ["nodule", "scan", "patient", "malignancy", "readers", "malignancy_ratings"]
    assert (row["nodule"], row["scan"]) == ("LIDC-IDRI-0001_scan1_nodule1", "LIDC-IDRI-0001_scan1")
    assert (row["patient"], row["malignancy"], row["readers"]) == ("LIDC-IDRI-0001", "3.5", "4")
    assert (row["malignancy_ratings"], row["calcification"], row["texture"]) == ("5;3;4;3", "6.0", "5.0")
    assert (row["series_uid"], row["padded"]) == ("1.2.3", "0.0")
    summary = read_json(tmp_path / "out" / "lidc.json")
    assert (summary["nodules"], summary["marks"], summary["patients"], summary["left_out"]) == (1, 4, 1, 0)
    assert (summary["marks_below_3_mm"], summary["marks_of_no_nodule"], summary["size_mm"]) == (4, 4, 24)


def test_readers_marks_become_nodules_across_scans_and_patients(tmp_path: Path) -> None:
    chest = Chest()
    middle = chest.middle()
    left, right = chest.ball(middle - [12, 0, 0], 5), chest.ball(middle + [12, 0, 0], 5)
    folder = tmp_path / "src" / "LIDC-IDRI-0001" / "a"
    chest.write(folder, left, right)
    chest.write_xml(folder / "1.xml", [drawn(left, 2), drawn(right, 5)], [drawn(right, 4)], [], [drawn(left, 1)])
    write_patient(tmp_path / "src", Chest(uid="1.2.10"), (1,))
    write_patient(tmp_path / "src", Chest(uid="1.2.5", patient="LIDC-IDRI-0002"), (2,))
    rows = prepared(tmp_path / "src", tmp_path / "out")
    assert [(row["nodule"], row["malignancy"], row["readers"]) for row in rows] == [
        ("LIDC-IDRI-0001_scan1_nodule1", "1.0", "1"),  # 1.2.10 comes before 1.2.3
        ("LIDC-IDRI-0001_scan2_nodule1", "1.5", "2"),
        ("LIDC-IDRI-0001_scan2_nodule2", "4.5", "2"),
        ("LIDC-IDRI-0002_scan1_nodule1", "2.0", "1"),
    ]


def test_xml_files_may_lie_apart_from_the_scans_and_twice(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "src", Chest())
    copy = tmp_path / "src" / "tcia-lidc-xml" / "157" / "158.xml"
    copy.parent.mkdir(parents=True)
    copy.write_text((folder / "069.xml").read_text().replace('uid="1.3.6', 'uid="1.4.6'))  # as some were published
    (copy.parent / "159.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov"/>')
    assert len(prepared(tmp_path / "src", tmp_path / "out")) == 1
    (folder / "069.xml").unlink()
    assert len(prepared(tmp_path / "src", tmp_path / "out2")) == 1


def test_of_two_series_in_one_folder_the_one_that_was_read_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_patient(tmp_path / "src", Chest())
    Chest((64, 64, 5), uid="1.2.1").write(folder, names="0{}.dcm")
    with caplog.at_level(logging.INFO):
        (row,) = prepared(tmp_path / "src", tmp_path / "out")
    assert row["series_uid"] == "1.2.3"
    assert "also holds the series 1.2.1 (CT, CHEST, 5 files)" in caplog.text


def test_a_cube_over_the_edge_of_the_scan_repeats_its_last_voxels(tmp_path: Path) -> None:
    chest = Chest((40, 40, 10), (1.0, 1.0, 2.0))
    ball = chest.ball(chest.middle(), 5)
    chest.write(tmp_path / "src", ball)
    chest.write_xml(tmp_path / "src" / "1.xml", [drawn(ball)])
    (row,) = prepared(tmp_path / "src", tmp_path / "out", size_mm=40)
    image = np.asarray(nibabel.load(tmp_path / "out" / "images" / f"{row['nodule']}.nii.gz").dataobj)
    assert float(row["padded"]) == pytest.approx(0.5)
    assert (image[:, :, 0] == -850).all() and (image[:, :, -1] == -850).all()


def test_values_outside_of_ct_are_clipped(tmp_path: Path) -> None:
    chest = Chest()
    ball = chest.ball(chest.middle(), 5)
    chest.write(tmp_path / "src", ball, tags={"RescaleSlope": 40, "RescaleIntercept": -10000})
    chest.write_xml(tmp_path / "src" / "1.xml", [drawn(ball)])
    (row,) = prepared(tmp_path / "src", tmp_path / "out")
    image = np.asarray(nibabel.load(tmp_path / "out" / "images" / f"{row['nodule']}.nii.gz").dataobj)
    assert (image.min(), image.max()) == (-1024, 3071)


@pytest.mark.parametrize(("edge", "middle"), [(9, [4, 4, 4]), (10, [5, 5, 5])])
def test_a_nodule_below_a_voxel_of_the_cube_keeps_its_middle(tmp_path: Path, edge: int, middle: list[int]) -> None:
    chest = Chest((40, 40, 12), (0.5, 0.5, 0.5))
    chest.write(tmp_path / "src")
    cross = [(20, 19), (21, 20), (20, 21), (19, 20)]
    chest.write_xml(tmp_path / "src" / "1.xml", [Drawn([Roi(6, cross)])])
    (row,) = prepared(tmp_path / "src", tmp_path / "out", size_mm=edge)
    mask = np.asarray(nibabel.load(tmp_path / "out" / "masks" / f"{row['nodule']}.nii.gz").dataobj)
    assert np.argwhere(mask).tolist() == [middle]


# --- bad input: refused in one sentence, left out with skip_bad -------------------------------------------------


def torn(folder: Path, name: str, end: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:end])


def contradict(folder: Path, chest: Chest) -> None:
    chest.write_xml(folder / "069.xml", [SMALL])
    chest.write_xml(folder / "071.xml", [drawn(chest.ball(chest.middle(), 6))])


def space_unevenly(folder: Path, chest: Chest) -> None:
    shifted = Chest(chest.shape, chest.spacing, origin=(-30, -20, -129.2), uid=chest.uid, patient=chest.patient)
    shifted.write(folder, skip=[number for number in range(20) if number != 12])


def marked(draw: Callable[[Chest], Drawn], **options: Any) -> Callable[[Path, Chest], Any]:
    """One reader's nodule in place of the readings."""
    return lambda folder, chest: chest.write_xml(folder / "069.xml", [draw(chest)], **options)


def tagged(**tags: Any) -> Callable[[Path, Chest], Any]:
    return lambda folder, chest: chest.write(folder, tags=tags)


def ball(radius: float, up: float = 0, malignancy: int | None = 3) -> Callable[[Chest], Drawn]:
    return lambda chest: drawn(chest.ball(chest.middle() + [0, 0, up], radius), malignancy)


BAD = {
    "069.xml' cannot be read as XML": lambda folder, chest: torn(folder, "069.xml", -40),
    "names the series 9.9.9, which is not in": marked(
        lambda chest: SMALL, head="<SeriesInstanceUid>9.9.9</SeriesInstanceUid>"
    ),
    "071.xml' holds other marks of the series 1.2.4": contradict,
    "misses 1 slice between '14.dcm' and '16.dcm'": lambda folder, chest: (folder / "15.dcm").unlink(),
    "has uneven slice spacing": space_unevenly,
    "15.dcm' cannot be read as a DICOM image": lambda folder, chest: torn(folder, "15.dcm", 900),
    "/0.dcm' cannot be read as a DICOM image": lambda folder, chest: torn(folder, "0.dcm", 900),
    "is not a CT": tagged(Modality="MR"),
    "states no pixel spacing": tagged(PixelSpacing=None),
    "states no patient ID": tagged(PatientID=""),
    "has no rating of malignancy": marked(ball(6, malignancy=None)),
    "outside the volume: x 60 to 65": marked(lambda chest: Drawn([Roi(9, [(60, 9), (65, 12), (60, 15)])])),
    "outside the volume, at z = -30 mm": marked(lambda chest: Drawn([Roi(40, [(20, 9), (25, 12), (20, 15)])])),
    "is in the last slice of the scan": marked(ball(6, up=23)),
    "the nodule does not fit into a cube of 24 mm": marked(ball(13)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name_or_left_out_and_counted(
    tmp_path: Path, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_patient(tmp_path / "src", Chest(), (2,))
    chest = Chest(uid="1.2.4", patient="LIDC-IDRI-0002")
    folder = write_patient(tmp_path / "src", chest, (5,))
    BAD[message](folder, chest)
    said = refusal(tmp_path / "src", tmp_path / "out")
    assert message in said and said.endswith("; or leave out this by --skip_bad.")
    assert str(folder) in said and message in caplog.text
    (row,) = prepared(tmp_path / "src", tmp_path / "out", skip_bad=True)
    assert (row["patient"], row["malignancy"]) == ("LIDC-IDRI-0001", "2.0")
    summary = read_json(tmp_path / "out" / "lidc.json")
    assert summary["left_out"] == 1 and message in summary["reasons"][0]


def test_a_mark_that_is_left_out_leaves_the_nodule_to_the_other_readers(tmp_path: Path) -> None:
    write_patient(tmp_path / "src", Chest(), (5, None, 4, None))
    assert refusal(tmp_path / "src", tmp_path / "out").endswith("; or leave out this and 1 more by --skip_bad.")
    (row,) = prepared(tmp_path / "src", tmp_path / "out", skip_bad=True)
    assert (row["readers"], row["malignancy"]) == ("2", "4.5")


def test_folders_without_readings_or_nodules_are_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path / "out")
    Chest().write(tmp_path / "src")
    assert "holds no XML file of CT readings" in refusal(tmp_path / "src", tmp_path / "out")
    Chest().write_xml(tmp_path / "src" / "1.xml", [SMALL])
    assert "holds no nodule of 3 mm or more" in refusal(tmp_path / "src", tmp_path / "out")


# --- a call that goes on ----------------------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        write_patient(tmp_path / "src", Chest(uid=f"1.2.{number}", patient=f"LIDC-IDRI-000{number}"))
    done = []
    cut = lidc.cut_cube

    def counted(series: Any, *args: Any) -> Any:
        done.append(series.uid)
        if len(done) == 2:
            raise KeyboardInterrupt
        return cut(series, *args)

    monkeypatch.setattr(lidc, "cut_cube", counted)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out" / "nodules.csv").exists()
    assert len(prepared(tmp_path / "src", tmp_path / "out")) == 3
    assert done == ["1.2.1", "1.2.2", "1.2.2", "1.2.3"]
    assert not list((tmp_path / "out").rglob("*.tmp"))
    again = (tmp_path / "out" / "nodules.csv").read_bytes()
    prepared(tmp_path / "src", tmp_path / "out")
    assert len(done) == 4 and (tmp_path / "out" / "nodules.csv").read_bytes() == again


@pytest.mark.parametrize("change", ["readings", "slices", "cube", "size"])
def test_what_changed_is_read_again(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chest = Chest()
    folder = write_patient(tmp_path / "src", chest, (2,))
    (folder / "069.xml").rename(tmp_path / "src" / "069.xml")
    prepared(tmp_path / "src", tmp_path / "out")
    if change == "readings":
        chest.write_xml(tmp_path / "src" / "069.xml", [drawn(chest.ball(chest.middle(), 6), 5)])
    elif change == "slices":
        os.utime(folder / "3.dcm", (1, 1))
    elif change == "cube":
        next((tmp_path / "out" / "masks").iterdir()).unlink()
    calls = []
    cut = lidc.cut_cube
    monkeypatch.setattr(lidc, "cut_cube", lambda *args: calls.append(1) or cut(*args))
    (row,) = prepared(tmp_path / "src", tmp_path / "out", size_mm=26 if change == "size" else 24)
    assert len(calls) == 1
    assert row["malignancy"] == ("5.0" if change == "readings" else "2.0")


def test_only_a_folder_of_lidc_without_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert nodules_folder(tmp_path / "empty", tmp_path / "out") == tmp_path / "empty"
    write_patient(tmp_path / "src", Chest())
    assert nodules_folder(tmp_path / "src", tmp_path / "out") == tmp_path / "out"
    assert len(rows_of(tmp_path / "out")) == 1
    (tmp_path / "src" / "nodules.csv").write_text("nodule,scan,malignancy\n")
    assert nodules_folder(tmp_path / "src", tmp_path / "other") == tmp_path / "src"
    assert not (tmp_path / "other").exists()


def test_patients_that_came_since_are_taken_in(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_patient(src, Chest())
    nodules_folder(src, src)
    write_patient(src, Chest(uid="1.2.4", patient="LIDC-IDRI-0002"))
    assert nodules_folder(src, tmp_path / "run") == src
    assert len(rows_of(src)) == 1 and not (tmp_path / "run").exists()
    nodules_folder(src, src)
    assert len(rows_of(src)) == 2
    assert nodules_folder(src, src) == src
