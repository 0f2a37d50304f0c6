"""The verb itself: all checks in order, the exit code, every bundle of the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check import ERROR
from med3d_ext.tools.check.verb import check_bundle
from med3d_ext.tools.cli import main

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[2].glob("bundles/*/configs/metadata.json"))
TOPICS = ["files", "ids", "classes", "versions", "network", "weights", "init", "data", "disk", "RAM", "GPU"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_passes(folder, tmp_path):
    before = list(sys.path)
    findings = check_bundle(Bundle(folder, {"output_dir": str(tmp_path), "device": "cpu", "init": "scratch"}))
    assert [str(finding) for finding in findings if finding.level == ERROR] == []
    assert [topic for topic in dict.fromkeys(finding.topic for finding in findings) if topic != "options"] == TOPICS
    assert sys.path == before
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_0_where_all_is_well(bundle, liver_folder, tmp_path, capsys):
    options = ["--dataset_dir", str(liver_folder(cases=12)), "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
    assert main(["check", str(bundle), *options, "--init", "scratch"]) == 0  # a copy has no released encoder beside it
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 errors")


def test_the_command_ends_with_1_and_all_lines_where_something_is_wrong(bundle, capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", str(bundle), "--epoch", "3", "--device", "cpu"])
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("1 error")
    assert len(lines) > 10


def test_a_broken_file_ends_the_check_early(bundle, capsys):
    (bundle / "configs" / "train.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["check", str(bundle)])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("error    files")]) == 1


def test_a_bundle_that_is_not_there_is_a_mistake_in_the_command_line(capsys):
    assert main(["check", "no_such_bundle"]) == 2
    assert "no_such_bundle" in capsys.readouterr().err
