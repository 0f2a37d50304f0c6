from __future__ import annotations

import json
from pathlib import Path

import pytest

from med3d_ext.tools import cli
from med3d_ext.tools.phantoms.dataset import phantom_dataset


def test_the_verb_writes_the_patients_and_prints_the_folder(tmp_path, capsys):
    folder = tmp_path / "2024"
    assert cli.main(["phantoms", "lits", "--folder", str(folder), "--cases", "1", "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert len(json.loads((folder / "dataset.json").read_text())["training"]) == 1
    again = phantom_dataset("lits", tmp_path / "again", cases=1, seed=7)
    (image,) = (path.relative_to(again) for path in again.glob("imagesTr/*"))
    assert (folder / image).read_bytes() == (again / image).read_bytes()


def test_a_number_as_folder_stays_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["phantoms", "nodules", "--folder", "2024", "--cases", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "2024"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["liver"], "phantoms: KIND must be one of lits, 3dseg8, lung, nodules, got 'liver'."),
        (["lits", "--cases", "0"], "phantoms: --cases must be at least 1, got 0."),
        (["lits", "--seed", "-1"], "phantoms: --seed must be at least 0, got -1."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, tmp_path, capsys):
    assert cli.main(["phantoms", *words, "--folder", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert cli.main(["phantoms", "lits", "--folder", str(tmp_path)]) == 2
    assert "give a new or an empty folder" in capsys.readouterr().err
