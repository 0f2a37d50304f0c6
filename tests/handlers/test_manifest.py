from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events

from med3d_ext.errors import InputError
from med3d_ext.handlers.manifest import RunManifest

DATA = SimpleNamespace(cases={"liver": [{"image": "a.nii.gz", "sha256": "12ab", "shape": [1, 2, 3]}]})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_manifest(**kwargs):
    return lambda evaluator: [RunManifest("out", evaluator=evaluator, **kwargs)]


def read():
    with open("out/run.json") as file:
        return json.load(file)


def test_a_completed_run_says_what_was_run_and_how_it_went(new_training, folder, monkeypatch):
    (folder / "train.json").write_text(json.dumps({"epochs": 4, "dataset_dir": f"{folder}/data", "lr": 1}))
    program = os.path.join("monai", "bundle", "__main__.py")
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", f"{folder}/train.json", "--epochs", "2"])
    new_training("ckpt", epochs=2, handlers=with_manifest(data=DATA, seed=5)).trainer.run()
    record = read()
    assert record["status"] == "completed"
    assert record["command"] == "python -m monai.bundle run --config_file train.json --epochs 2"
    assert record["config"] == {"epochs": 2, "dataset_dir": "data", "lr": 1}
    assert record["overrides"] == {"epochs": 2}
    assert record["seed"] == 5
    assert record["data"] == {"liver": {"a.nii.gz": "12ab"}}
    assert record["best"] == {"val_mean_dice": 0.5, "epoch": 2}
    assert record["metrics"] == {"val_mean_dice": 0.5}
    assert (record["epochs"], record["iterations"]) == (2, 6)
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]["type"] == "cpu"
    assert record["device"]["threads"] == torch.get_num_threads()
    assert record["started"] <= record["finished"]
    assert record["duration_seconds"] > 0
    assert record["earlier"] == []
    assert str(folder) not in json.dumps(record)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), "interrupted", "Interrupted."),
        (ValueError("a fault"), "failed", "ValueError: a fault"),
        (InputError("a.nii is truncated; copy it."), "failed", "a.nii is truncated; copy it."),
    ],
)
def test_a_run_that_fails_says_why_and_the_exception_goes_on(new_training, error, status, message):
    training = new_training("ckpt", handlers=with_manifest())

    def stop(engine):
        if engine.state.iteration == 4:
            assert read()["status"] == "running"
            raise error

    training.trainer.add_event_handler(Events.ITERATION_STARTED, stop)
    with pytest.raises(type(error)):
        training.trainer.run()
    record = read()
    assert (record["status"], record["error"], record["epochs"]) == (status, message, 2)


def test_a_killed_run_is_listed_as_interrupted_by_the_next(new_training, monkeypatch):
    training = new_training("ckpt", epochs=1, resume=False, handlers=with_manifest())
    with monkeypatch.context() as patch:
        patch.setattr(RunManifest, "_end", lambda *_: None)  # as if it never came to its end
        training.trainer.run()
    for epochs in (2, 3):
        new_training("ckpt", epochs=epochs, handlers=with_manifest()).trainer.run()
    assert read()["lengths"] == [1, 2, 3]
    assert [entry["status"] for entry in read()["earlier"]] == ["interrupted", "completed"]
    assert read()["earlier"][1]["epochs"] == 2


def test_a_failure_before_the_start_leaves_the_record_and_a_broken_one_is_replaced(new_training, folder):
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text("{")
    new_training("ckpt", epochs=1, handlers=with_manifest()).trainer.run()
    assert read()["earlier"] == []
    before = read()
    with open("ckpt/training_state.pt", "w") as file:
        file.write("broken")
    with pytest.raises(InputError, match="cannot be read"):
        new_training("ckpt", epochs=1, handlers=with_manifest()).trainer.run()
    assert read() == before


def test_the_data_may_be_what_older_configs_give(new_training):
    data = {"domains": {name: {"cases": cases} for name, cases in DATA.cases.items()}}
    new_training("ckpt", epochs=1, handlers=with_manifest(data=data)).trainer.run()
    assert read()["data"] == {"liver": {"a.nii.gz": "12ab"}}


def test_an_evaluation_records_its_own_metrics(new_training):
    evaluator = new_training("ckpt").evaluator
    RunManifest("out").attach(evaluator)
    evaluator.run()
    assert read()["metrics"] == {"val_mean_dice": 0.1}
