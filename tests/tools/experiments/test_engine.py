"""Arms are run once, resumed, waited for, and never taken for another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import med3d_ext.tools.experiments.engine as engine
from med3d_ext.tools.experiments.engine import Arm, Experiment, alone_in

posix = pytest.mark.skipif(os.name == "nt", reason="locks and programs of POSIX")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    for name in ("train", "evaluate", "overlay"):
        (tmp_path / f"{name}.json").write_text("{}")
    return Experiment("study 'x'", [str(tmp_path / "train.json")], "evaluate.json", ["overlay.json"])


@pytest.fixture
def steps(monkeypatch) -> list[list[str]]:
    """The config files of each process that an arm starts; none really is."""
    steps = []

    def run(arguments, log: Path, descriptors=()) -> int:
        steps.append([Path(file).name for file in arguments["config_file"]])
        files = {"models/model.pt": "", "models/training_state.pt": "", "run.json": '{"status": "completed"}'}
        for name, content in (files if log.stem == "train" else {"test/summary.json": "{}"}).items():
            (log.parent / name).parent.mkdir(exist_ok=True)
            (log.parent / name).write_text(content)
        return 0

    monkeypatch.setattr(engine, "run_bundle", run)
    return steps


def arm(folder: Path, data: str = "/data", **overrides) -> Arm:
    items = lambda split: [{"domain": "liver", "sha256": split}]  # noqa: E731
    prepared = SimpleNamespace(identity="abc", items=items, folder=Path(data))
    return Arm(folder, prepared, {"epochs": 3, **overrides}, {"seed": 0})  # type: ignore[arg-type]


def test_overlays_belong_to_the_training_and_a_finished_arm_keeps_its_weights_and_not_its_checkpoint(
    tmp_path, experiment, steps
) -> None:
    for _ in range(2):
        experiment.run_arm(arm(tmp_path / "a"))
        assert {path.name for path in (tmp_path / "a" / "models").iterdir()} == {"model.pt"}
    assert steps == [["train.json", "overlay.json"], ["train.json", "evaluate.json"]]


def test_a_training_of_other_settings_does_not_pass_for_this_one_after_a_kill(tmp_path, experiment, steps) -> None:
    experiment.run_arm(arm(tmp_path / "a"))
    steps.clear()

    def killed(*_) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run_bundle", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.run_arm(arm(tmp_path / "a", epochs=4))
    experiment.run_arm(arm(tmp_path / "a", epochs=4))
    assert [files[-1] for files in steps] == ["overlay.json", "evaluate.json"]


HOLDER = """
import subprocess, sys
from pathlib import Path
from med3d_ext.tools.experiments.engine import alone_in
with alone_in(Path(sys.argv[1])) as descriptors:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=descriptors)
    print("held", flush=True)
    child.wait()
"""


@posix
def test_what_a_killed_command_left_running_is_waited_for_and_a_free_folder_is_held_at_once(tmp_path, caplog) -> None:
    caplog.set_level("INFO", "med3d_ext.experiments")
    for _ in range(2):
        with alone_in(tmp_path / "new") as descriptors:
            assert len(descriptors) == 1
    assert "waiting" not in caplog.text
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    began = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with alone_in(tmp_path):
        assert time.monotonic() - began > 0.5
    assert f"waiting for the process that is at work in '{tmp_path}'" in caplog.text


@posix
def test_the_command_of_a_step_is_kept_next_to_its_log(tmp_path, monkeypatch) -> None:
    log = tmp_path / "train.log"
    monkeypatch.setattr(sys, "executable", shutil.which("echo"))
    assert engine.run_bundle({"config_file": "train.json", "epochs": 2}, log) == 0
    assert log.read_text() == f"-m monai.bundle run --args_file {tmp_path / 'train.json'}\n"
    assert json.loads((tmp_path / "train.json").read_text())["epochs"] == 2
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert engine.run_bundle({}, log) == 1
