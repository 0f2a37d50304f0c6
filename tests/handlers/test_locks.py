"""Two processes and one folder: one waits or is refused, and a process that has died keeps nobody out."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from med3d_ext.data import prepared_data as preparation
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.handlers.checkpoint import LOCK_NAME, STATE_NAME
from med3d_ext.io import files
from med3d_ext.io.files import hold, lock_elsewhere
from med3d_ext.tools.layouts.prepare import prepare_folder
from med3d_ext.tools.zoo.fetch import fetch

HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start a process that holds a lock until it is told to end."""
    started = []

    def start(path: Path) -> subprocess.Popen:
        path.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)


def test_whoever_waits_says_so_and_goes_on_when_the_other_has_died(holder, tmp_path, caplog):
    process = holder(tmp_path / ".lock")
    threading.Timer(0.7, process.kill).start()
    begin = time.monotonic()
    with caplog.at_level(logging.INFO), hold(tmp_path / ".lock"):
        assert time.monotonic() - begin > 0.5
    assert f"waiting for the process that is at work in '{tmp_path}'" in caplog.text


def test_who_need_not_wait_says_nothing_and_a_process_may_hold_a_lock_twice(tmp_path, caplog):
    with caplog.at_level(logging.INFO), hold(tmp_path / "new" / ".lock"), hold(tmp_path / "new" / ".lock"):
        assert not caplog.text


def test_a_folder_that_cannot_be_written_is_refused_and_one_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file' cannot be written"), hold(tmp_path / "file" / ".lock"):
        pass

    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", no_locks)
    with hold(tmp_path / ".lock"):
        assert "on a file system without locks" in caplog.text


@pytest.mark.parametrize("place", ["models", "eval"])
def test_a_second_training_in_a_folder_is_refused_and_changes_nothing(new_training, holder, tmp_path, place):
    folders = {"folder": tmp_path / "models", "output_dir": str(tmp_path / "eval")}
    first = new_training(epochs=1, **folders)
    first.trainer.run()
    before = (tmp_path / "models" / STATE_NAME).read_bytes()
    process = holder(tmp_path / place / LOCK_NAME)
    second = new_training(epochs=2, **folders)
    with pytest.raises(InputError, match=f"another training is running in '{tmp_path / place}'; .*--ckpt_dir"):
        second.trainer.run()
    assert second.losses == [] and (tmp_path / "models" / STATE_NAME).read_bytes() == before
    process.kill()
    process.wait()
    third = new_training(epochs=2, **folders)
    third.trainer.run()
    assert len(third.losses) == 3
    holder(tmp_path / place / LOCK_NAME)  # a training that is completed lets go of its folders


def test_a_run_waits_for_another_one_that_prepares_the_same_data(liver_folder, holder, tmp_path, caplog):
    source = liver_folder()
    process = holder(tmp_path / "run" / "prepared" / source.name / preparation.LOCK_NAME)
    threading.Timer(0.7, process.kill).start()
    with caplog.at_level(logging.INFO):
        assert PreparedData("lits", str(source), str(tmp_path / "run")).training
    assert "waiting for the process" in caplog.text


def test_a_preparation_in_vain_leaves_nothing_behind(liver_folder, tmp_path):
    source = liver_folder()
    (source / "labelsTr" / "liver_0.nii.gz").unlink()
    before = sorted(source.rglob("*"))
    for output in (source, tmp_path / "out"):
        with pytest.raises(InputError, match="does not exist"):
            prepare_folder("lits", source, output, 0)
    assert sorted(source.rglob("*")) == before and not (tmp_path / "out").exists()


def test_a_second_fetch_of_a_bundle_waits_and_finds_it(holder, tmp_path, caplog):
    target = tmp_path / "bundles" / "lits_coarse"
    process = holder(lock_elsewhere(target))

    def arrive():
        target.mkdir(parents=True)
        process.kill()

    threading.Timer(0.7, arrive).start()
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match="lits_coarse' exists and stays as it is"):
        fetch("lits_coarse", source=str(tmp_path), output=str(target.parent))
    assert f"waiting for the process that is at work in '{target}'" in caplog.text
