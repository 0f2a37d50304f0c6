"""The measurement of transfer: folds, rows that survive a kill, Dice by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from med3d_ext.errors import InputError
from med3d_ext.networks import ResNetEncoder
from med3d_ext.tools.phantoms.dataset import phantom_dataset

FILE = Path(__file__).parents[1] / "benchmarks" / "transfer.py"


@pytest.fixture(scope="module")
def transfer():
    spec = importlib.util.spec_from_file_location("transfer", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["transfer"] = module
    spec.loader.exec_module(module)
    module.TASKS = {
        "phantom": {"folder": "lung", "kind": "lung", "spatial_size": [32, 32, 32], "intensity_range": None}
    }
    yield module
    del sys.modules["transfer"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    phantom_dataset("lung", folder / "lung", 4)
    return folder


def measure(transfer, data, rows, arms, steps=(1, 2)):
    transfer.measure(arms, rows, data, ["phantom"], 2, [0], [0], steps)
    return [json.loads(line) for line in rows.read_text().splitlines()]


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_dice_of_each_class_and_none_for_a_class_that_is_not_in_the_label(transfer):
    label = torch.tensor([[[[1, 1, 0, 0]]]])
    found = torch.tensor([[[[1, 0, 1, 2]]]])
    assert transfer.dice(found, label, 4) == [0.5, None, None]


def test_every_case_is_tested_in_one_fold_and_trained_on_in_the_others(transfer, data, tmp_path):
    task = transfer.Task("phantom", data, tmp_path)
    folds = [task.fold(fold, 2) for fold in (0, 1)]
    names = [({item["image"] for item in training}, {item["image"] for item in test}) for training, test in folds]
    assert all(not training & test and len(training | test) == 4 for training, test in names)
    assert len(names[0][1] | names[1][1]) == 4


def test_a_killed_measurement_resumes_to_the_same_rows_and_no_run_is_repeated(transfer, data, tmp_path, monkeypatch):
    arms = {"scratch": transfer.Arm(), "fast": transfer.Arm(learning_rate=0.01)}
    whole = measure(transfer, data, tmp_path / "whole" / "rows.jsonl", arms)
    assert [(row["arm"], row["step"]) for row in whole] == [("scratch", 1), ("scratch", 2), ("fast", 1), ("fast", 2)]
    killed = tmp_path / "killed" / "rows.jsonl"
    killed.parent.mkdir()
    killed.write_text("".join(json.dumps(row) + "\n" for row in whole[:3]) + '{"arm": "fa')
    runs, real = [], transfer.run
    monkeypatch.setattr(transfer, "run", lambda *args: runs.append(args) or real(*args))
    assert without_seconds(measure(transfer, data, killed, arms)) == without_seconds(whole)
    assert len(runs) == 1
    measure(transfer, data, killed, arms)
    assert len(runs) == 1


def test_other_weights_or_settings_under_a_name_are_measured_anew(transfer, data, tmp_path):
    rows = tmp_path / "rows.jsonl"
    measure(transfer, data, rows, {"arm": transfer.Arm()}, steps=(1,))
    assert len(measure(transfer, data, rows, {"arm": transfer.Arm(learning_rate=0.5)}, steps=(1,))) == 2


def test_frozen_statistics_and_a_frozen_encoder_leave_it_as_it_was(transfer, data, tmp_path, monkeypatch):
    made = []

    class Kept(ResNetEncoder):
        def __init__(self, name):
            super().__init__(name)
            made.append(self)

    start = ResNetEncoder("resnet10")
    torch.save(start.state_dict(), tmp_path / "encoder.pt")
    monkeypatch.setattr(transfer, "ResNetEncoder", Kept)
    arm = transfer.Arm(init=str(tmp_path / "encoder.pt"), heads_first=1, statistics="frozen")
    task = transfer.Task("phantom", data, tmp_path / "work")
    before = start.state_dict()
    for row in transfer.run(task, arm, 0, 2, 0, [1, 2]):
        now = made[0].state_dict()
        same = {name for name in before if torch.equal(before[name], now[name])}
        statistics = {name for name in before if "running" in name or "tracked" in name}
        assert same == (set(before) if row["step"] == 1 else statistics)
    with pytest.raises(InputError, match="statistics must be"):
        transfer.Arm(statistics="frozen")
