"""The verb itself: all checks in order, one line each, the exit code, every bundle of the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from med3d_ext.errors import InputError
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check import ERROR, error, ok, warning
from med3d_ext.tools.check.verb import check_bundle, counts, gather
from med3d_ext.tools.cli import main

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[2].glob("bundles/*/configs/metadata.json"))
TOPICS = ["files", "ids", "classes", "versions", "network", "weights", "init", "data", "disk", "RAM", "GPU"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_passes(folder, tmp_path):
    before = list(sys.path)
    findings = check_bundle(Bundle(folder, {"output_dir": str(tmp_path), "device": "cpu", "init": "scratch"}))
    assert [str(finding) for finding in findings if finding.level == ERROR] == []
    assert [topic for topic in dict.fromkeys(finding.topic for finding in findings) if topic != "options"] == TOPICS
    assert sys.path == before and list(tmp_path.iterdir()) == []


def test_a_finding_is_a_line_in_columns_and_the_last_line_counts():
    lines = [ok("ids", "all found"), ok("a", "y"), warning("versions", "old"), error("c", "w")]
    assert [str(line) for line in lines[::2]] == ["ok       ids       all found", "warning  versions  old"]
    assert (counts(lines), counts([])) == ("2 ok, 1 warning, 1 error", "0 ok, 0 warnings, 0 errors")


def wrapped(cause: Exception) -> Exception:
    outer = RuntimeError("Failed to instantiate\ncomponent x.")
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (InputError("'x.nii' is damaged; restore it."), "'x.nii' is damaged; restore it."),
        (wrapped(InputError("give a folder.")), "give a folder."),
        (wrapped(ZeroDivisionError("by zero")), "Failed to instantiate component x. by zero"),
        (KeyError("epochs"), "'epochs'"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_check_that_breaks_down_is_a_finding_and_what_it_found_before_is_kept(fault, said):
    def broken():
        yield ok("data", "the first file")
        raise fault

    assert gather("data", broken) == [ok("data", "the first file"), error("data", said)]


def test_the_command_ends_with_0_where_all_is_well(bundle, liver_folder, tmp_path, capsys):
    options = ["--dataset_dir", str(liver_folder(cases=12)), "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
    assert main(["check", str(bundle), *options, "--init", "scratch"]) == 0  # a copy has no released encoder beside it
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 errors")


def test_the_command_ends_with_1_where_something_is_wrong_and_early_where_a_file_is_broken(bundle, capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", str(bundle), "--epoch", "3", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 1 and lines[-1].endswith("1 error") and len(lines) > 10
    (bundle / "configs" / "train.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["check", str(bundle)])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("error    files")]) == 1
    assert main(["check", "no_such_bundle"]) == 2
    assert "no_such_bundle" in capsys.readouterr().err


def test_a_folder_of_images_to_segment_is_no_error_and_is_measured_for_inference(bundle, nifti, tmp_path):
    nifti(tmp_path / "new" / "p1" / "ct.nii.gz", np.zeros((40, 40, 40), np.int16))
    found = check_bundle(Bundle(bundle, {"dataset_dir": str(tmp_path / "new"), "device": "cpu"}))
    assert [finding.text for finding in found if finding.level == "error"] == []
    topics = {finding.topic: finding.text for finding in found}
    assert "disk" not in topics and "training" not in topics["GPU"] and "one forward pass" in topics["RAM"]


def test_what_is_wrong_with_the_data_is_said_once_and_read_once(bundle, liver_folder, tmp_path):
    damaged = liver_folder(cases=3) / "imagesTr" / "liver_1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    options = {"dataset_dir": str(damaged.parents[1]), "output_dir": str(tmp_path / "eval"), "device": "cpu"}
    found = check_bundle(Bundle(bundle, options))
    assert [finding.topic for finding in found if str(damaged) in finding.text] == ["data"]
    assert {"disk", "RAM", "GPU"} <= {finding.topic for finding in found}
