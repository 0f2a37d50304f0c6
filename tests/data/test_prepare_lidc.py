"""LIDC-IDRI from DICOM and XML to what the nodule bundle trains on, in one command."""

from __future__ import annotations

from pathlib import Path

import pytest
from lidc_files import Chest, drawn
from prepared_folders import domain_of

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.io.files import read_json
from med3d_ext.tools.cli import main
from med3d_ext.tools.layouts.prepare import CUBE_MM

RATINGS = ((1, 2), (5, 4), (2, 2), (5, 5), (3, 4))  # the last lies between the classes


def write_patients(src: Path) -> Path:
    for number, ratings in enumerate(RATINGS, start=1):
        chest = Chest(uid=f"1.2.{number}", patient=f"LIDC-IDRI-000{number}")
        ball = chest.ball(chest.middle(), 6 + number)  # one image in several patients is refused
        folder = chest.write(src / chest.patient / "series", ball)
        chest.write_xml(folder / "069.xml", *([drawn(ball, rating)] for rating in ratings))
    return src


def test_one_command_makes_a_datalist_of_two_classes_by_patient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, output = write_patients(tmp_path / "src"), tmp_path / "out"
    assert main(["prepare", "lidc", str(src), "--output", str(output)]) == 0
    assert f"are in {output}" in capsys.readouterr().out
    data = PreparedData("nodules", str(output), str(tmp_path / "run"))
    items = {split: data.items(split) for split in ("training", "test")}
    assert {split: len(cases) for split, cases in items.items()} == {"training": 2, "test": 2}
    assert sorted(item["label"] for item in items["test"]) == [0, 1]
    for item in items["training"] + items["test"]:
        assert Path(item["image"]).parent == output / "images" and Path(item["mask"]).parent == output / "masks"
    domain = domain_of(output)
    assert {case["subject"] for case in domain["cases"]} == {f"LIDC-IDRI-000{n}" for n in (1, 2, 3, 4)}
    assert (domain["tied"], domain["spacing_median"], domain["cube_mm"]) == (1, [1, 1, 1], CUBE_MM)


def test_a_run_prepares_lidc_by_itself_outside_of_the_data(tmp_path: Path) -> None:
    src = write_patients(tmp_path / "src")
    before = sorted(src.rglob("*"))
    data = PreparedData("nodules", str(src), str(tmp_path / "run"))
    assert len(data.training) + len(data.test) == 4
    assert all(Path(item["image"]).is_file() for item in data.training)
    assert sorted(src.rglob("*")) == before


def test_bad_scans_end_the_command_and_skip_bad_leaves_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, output = write_patients(tmp_path / "src"), tmp_path / "out"
    next((src / "LIDC-IDRI-0005").rglob("9.dcm")).unlink()
    command = ["prepare", "lidc", str(src), "--output", str(output)]
    assert main(command) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "misses 1 slice" in message and message.endswith("or leave out this by --skip_bad.")
    assert not (output / "nodules.csv").exists() and not (output / "datalist.json").exists()
    assert main([*command, "--skip_bad"]) == 0
    assert read_json(output / "lidc.json")["left_out"] == 1
