"""Ctrl-C and SIGTERM, torn and foreign checkpoints and cache entries."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from catalogue import Code
from commands import MED3D, MONAI, Done, Running, Shell, link, refused, train_words
from results import differing, results

CODES = {
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (143, -signal.SIGTERM),
}  # both are 130 and 143 in a shell
BUNDLE = "pretrain_3dseg8"  # the shortest of the trainings


def until(condition: Callable[[], bool], running: Running, seconds: float = 120) -> None:
    """Wait while the command runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert running.is_running() and time.monotonic() < deadline, running.text()
        time.sleep(0.01)


def stopped_clearly(done: Done, number: int) -> None:
    """The signal's exit code, no traceback, and at last one line that says what happened."""
    assert done.code in CODES[signal.Signals(number)], done
    assert "Traceback" not in done.err + done.out, done
    assert done.err.strip().splitlines()[-1:] != [], "it ended without a word"


@pytest.fixture(scope="session")
def quiet(shell, data, tmp_path_factory) -> dict[str, Any]:
    """Results of the training of two epochs, and its folder."""
    folder = tmp_path_factory.mktemp("quiet")
    done = shell.run(MONAI, *train_words(BUNDLE, data[BUNDLE], folder), folder=folder)
    assert done.code == 0, done
    return results(folder)


@pytest.fixture(scope="session")
def halfway(shell: Shell, data, tmp_path_factory) -> Path:
    """A training of two epochs that was killed after the first."""
    folder = tmp_path_factory.mktemp("halfway")
    running = shell.start(MONAI, *train_words(BUNDLE, data[BUNDLE], folder), folder=folder)
    until(lambda: "epoch 1/2" in running.text(), running)
    state = folder / "models" / "training_state.pt"
    until(lambda: state.is_file() and torch.load(state, weights_only=True)["epoch"] == 1, running)
    running.kill()
    running.wait()
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_training_says_so_and_resumes_exactly(number, shell, data, place, quiet):
    words = train_words(BUNDLE, data[BUNDLE], place)
    running = shell.start(MONAI, *words, folder=place)
    until(lambda: "epoch 1/2" in running.text(), running)
    running.kill(number)
    stopped_clearly(running.wait(), number)
    again = shell.run(MONAI, *words, folder=place)
    assert again.code == 0, again
    assert differing(results(place), quiet) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_prediction_says_so_and_goes_on(number, trained, shell, place):
    tiny.images(place / "scans", cases=12)
    words = ["predict", trained, "scans", "--output", "out"]
    running = shell.start(MED3D, *words, folder=place)
    until(lambda: len(list((place / "out").glob("*_seg.nii.gz"))) >= 2, running)
    running.kill(number)
    stopped_clearly(running.wait(), number)
    again = shell.run(MED3D, *words, folder=place)
    assert again.code == 0 and "skipped" in again.out, again
    assert len(list((place / "out").glob("*_seg.nii.gz"))) == 12
    assert not [path for path in (place / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_preparation_says_so(number, shell, place):
    tiny.decathlon(place / "data", cases=40, shape=(64, 64, 64))
    running = shell.start(MED3D, "prepare", "lits", "data", "--output", "out", folder=place)
    time.sleep(0.5)
    running.kill(number)
    done = running.wait()
    stopped_clearly(done, number)
    assert not (place / "out" / "datalist.json").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def hollow(path: Path) -> None:
    """A page of zeros in the middle: what a machine leaves that lost power before all was on the disk."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    torch.save({"epoch": 1, "max_epochs": 2, "data": None, "model": {"a": torch.zeros(3)}}, path)


def code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code()))


DAMAGES = [cut, hollow, zeros, nothing, foreign, code]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_recognized(damage, halfway, shell, data, place, quiet):
    """Refused in a sentence that names it, or made good with a warning that names it; never used."""
    shutil.copytree(halfway, place, dirs_exist_ok=True, copy_function=link)
    state = place / "models" / "training_state.pt"
    content = state.read_bytes()
    state.unlink()
    state.write_bytes(content)
    damage(state)
    words = train_words(BUNDLE, data[BUNDLE], place)
    done = shell.run(MONAI, *words, folder=place)
    assert not (place / "ran").exists(), "code of the file was run"
    if done.code == 0:
        assert "training_state" in done.err + done.out, done
    else:
        refused(done, "training_state.pt", code=1)
        done = shell.run(MONAI, *words, "--resume", "false", folder=place)
        assert done.code == 0, done
    found = results(place)
    found.pop("models/model_previous.pt", None)
    assert [name for name in differing(found, quiet) if name != "eval/run.json"] == []  # which states --resume false


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_entry_of_the_store_is_made_again(damage, halfway, shell, data, place, quiet, tmp_path_factory):
    shutil.copytree(halfway, place, dirs_exist_ok=True, copy_function=link)
    store = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(os.environ["MED3D_STORE"], store)
    entries = list(store.glob("*.pt"))
    assert entries, "no store"
    for path in entries:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        damage(path)
    words = [*train_words(BUNDLE, data[BUNDLE], place), "--store_dir", store]
    done = shell.run(MONAI, *words, folder=place)
    assert not (place / "ran").exists(), "code of the file was run"
    assert done.code == 0, done
    assert "is damaged" in done.err + done.out and "is made again" in done.err + done.out, done
    others = [name for name in differing(results(place), quiet) if name != "eval/run.json"]  # which states the store
    assert others == []
