"""The files of a comparison: what they say, and that they can be read without the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from med3d_ext.errors import InputError

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_a_comparison_leaves_everything_to_judge_it_by(make, tmp_path) -> None:
    record = make().run()
    out = tmp_path / "out"
    assert json.loads((out / "comparison.json").read_text()) == record
    assert {"command", "versions", "git", "options", "seeds", "data", "starts", "budgets", "runs"} <= record.keys()
    assert (record["bundle"], record["complete"], record["metric"]) == ("small", True, "val_mean_dice")
    assert record["budgets"] == [{"share": None, "fold": None, "iterations": 56, "epochs": 4, "training_cases": 14}]
    assert record["data"]["test"]["test"]["n"] == 4
    (entry,) = record["results"]
    assert {arm: figures["n"] for arm, figures in entry["arms"].items()} == dict.fromkeys(record["starts"], 4)
    assert entry["arms"]["med3d"]["against_reference"]["note"].startswith("4 differing pairs")
    loss, dice = record["iterations_to_reach"]
    assert (loss["quantity"], dice["quantity"]) == ("training loss", "val_mean_dice")
    for reach in (loss, dice):
        assert reach["reference"] == "scratch_0.01"
        assert reach["arms"]["med3d"]["times_faster"] > 1
        assert reach["arms"]["scratch_0.001"]["iteration"] is None
    for name in ("curves.png", "overlays.png"):  # what is on them: test_pictures.py
        assert pyplot.imread(out / name).std() > 0
    assert str(tmp_path) not in json.dumps(record["data"])


@pytest.mark.usefixtures("no_pictures")
def test_the_table_states_n_intervals_and_what_never_happened(make, tmp_path) -> None:
    make().run()
    table = (tmp_path / "out" / "table.md").read_text()
    assert "n is the number of test cases" in table
    assert "every arm made 56 iterations (4 epochs) on 14 training cases" in table
    row = next(line for line in table.splitlines() if line.startswith("| med3d | 0.001 | 4 |"))
    assert row.count("[") == 2
    assert "fewer than 6 cannot reach p < 0.05" in table
    assert "| scratch_0.001 | never | 56 |" in table


@pytest.mark.usefixtures("no_pictures")
def test_a_classifier_is_compared_by_the_auc_of_all_folds(make, runner, tmp_path) -> None:
    runner.task = "classification"
    record = make(folds=5).run()
    assert record["metric"] == "val_auc"
    assert [entry["metric"] for entry in record["results"]] == ["val_brier", "auc"]
    auc = record["results"][1]["arms"]["med3d"]
    assert auc["n"] == 20
    assert auc["interval_95"][0] <= auc["mean"] <= auc["interval_95"][1]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "DeLong" in table
    assert "val_brier (lower is better)" in table and "auc (lower" not in table


@pytest.mark.usefixtures("no_pictures")
def test_a_metric_that_no_validation_knows_is_refused_with_those_there_are(make) -> None:
    with pytest.raises(InputError, match="one of val_mean_dice, got val_dice"):
        make(metric="val_dice", seeds=[0]).run()


@pytest.mark.usefixtures("no_pictures")
def test_without_a_best_metric_one_must_be_chosen(make, runner, tmp_path, monkeypatch) -> None:
    evaluate = runner.evaluate

    def forget(folder: Path, *rest) -> None:
        run = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({key: value for key, value in run.items() if key != "best"}))
        evaluate(folder, *rest)

    monkeypatch.setattr(runner, "evaluate", forget)
    with pytest.raises(InputError, match="names no best metric; choose one with --metric"):
        make(seeds=[0]).run()
    assert make(seeds=[0], metric="val_mean_dice").run()["metric"] == "val_mean_dice"


@pytest.mark.usefixtures("no_pictures")
def test_the_files_of_an_arm_may_not_be_missing(make, tmp_path) -> None:
    make(seeds=[0]).run()
    (tmp_path / "out" / "arms" / "med3d_seed0" / "loss.csv").unlink()
    with pytest.raises(InputError, match="loss.csv' cannot be read"):
        make(seeds=[0]).run()
