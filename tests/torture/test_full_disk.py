"""A disk that is full: one sentence, and the last good file survives, in each writer."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import tiny
from commands import MED3D, MONAI, Shell, refused, train_words
from results import content, results
from test_kills import QUICK_TASKS, fresh


def said(done: Any) -> None:
    """One sentence about the disk, on the last line."""
    refused(done)
    assert any(word in done.last.lower() for word in ("space", "full", "disk")), done


@pytest.mark.parametrize("name", QUICK_TASKS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_write_that_fails_is_one_sentence(name, number, shell, place, subtests):
    """Each kind of write in turn fails, and all after it, as on a disk that has become full or read-only."""
    task = QUICK_TASKS[name]
    source, folder, log = place / "source", place / "work", place / "moments"
    source.mkdir()
    task.prepare(source)
    fresh(source, folder)
    done = task.run(shell, folder, f"import faults; faults.record({str(folder)!r}, {str(log)!r})")
    assert done.code == 0, done
    before = results(folder)
    for event, file in sorted(faults.moments(log)):
        if event == "os.remove":
            continue
        with subtests.test(f"{name}: {errno.errorcode[number]} at {event} {file}"):
            fresh(source, folder)
            call = f"import faults; faults.fail_at({str(folder)!r}, {event!r}, {file!r}, 1, {number})"
            refused(task.run(shell, folder, call))
            again = task.run(shell, folder)
            assert again.code == 0 and results(folder).keys() >= before.keys(), again


def fill(folder: Path, leave: int) -> None:
    """Take all of a small disk but ``leave`` bytes."""
    space = os.statvfs(folder)
    size = space.f_bavail * space.f_frsize - leave
    (folder / "filler").write_bytes(bytes(max(0, size)))


VERBS: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "prepare": (lambda place, own: ["prepare", "lits", "data", "--output", "full/out"], "1m"),
    "predict": (lambda place, own: ["predict", own, "scans", "--output", "full/out"], "1m"),
    "evaluate": (lambda place, own: ["evaluate", "data/labelsTr", "data/labelsTr", "--output", "full/out"], "1m"),
    "new-bundle": (lambda place, own: ["new-bundle", "x", "--dataset_dir", "data", "--output", "full"], "1m"),
    "phantoms": (lambda place, own: ["phantoms", "nodules", "--folder", "full/out", "--cases", 4], "8m"),
    "weights convert": (lambda place, own: ["weights", "convert", own / "models/model.pt", "full/w.pt"], "8m"),
    "weights release": (lambda place, own: ["weights", "release", own / "models/model.pt", "full/w.pt"], "8m"),
    "zoo pack": (lambda place, own: ["zoo", "pack", own, "full/zoo"], "8m"),
    "export": (lambda place, own: ["export", own, "full/w.ts"], "8m"),
}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_on_a_full_disk_says_so_and_leaves_nothing_half_written(name, trained, shell, place, mount):
    words, size = VERBS[name]
    tiny.decathlon(place / "data")
    tiny.images(place / "scans")
    full = mount("full", size=size)
    fill(full, leave=2048 if size == "1m" else 1 << 20)
    said(shell.run(MED3D, *words(place, trained), folder=place))
    left = [path for path in full.rglob("*") if path.is_file() and path.name not in ("filler", ".lock", "summary.json")]
    assert left == []


def test_an_archive_that_does_not_fit_is_not_fetched(trained, shell, place, mount):
    done = shell.run(MED3D, "zoo", "pack", trained, "zoo", folder=place)
    assert done.code == 0, done
    full = mount("full", size="8m")
    said(shell.run(MED3D, "zoo", "fetch", "own", "--source", "zoo", "--output", "full", folder=place))
    assert list(full.iterdir()) == []


def test_predict_on_a_full_disk_keeps_the_result_that_is_there(trained, shell, place, mount):
    tiny.images(place / "scans", cases=1)
    full = mount("full", size="4m")
    words = ["predict", trained, "scans", "--output", "full"]
    assert shell.run(MED3D, *words, folder=place).code == 0
    before = (full / "scan_0_seg.nii.gz").read_bytes()
    tiny.images(place / "scans", cases=3)
    fill(full, leave=4096)
    refused(shell.run(MED3D, *words, folder=place))
    refused(shell.run(MED3D, *words, "--overwrite", folder=place))
    assert (full / "scan_0_seg.nii.gz").read_bytes() == before
    (full / "filler").unlink()
    again = shell.run(MED3D, *words, folder=place)
    assert again.code == 0 and len(list(full.glob("*_seg.nii.gz"))) == 3, again


@pytest.mark.parametrize("leave", [1, 70, 200], ids="{} MB left".format)
def test_a_training_on_a_full_disk_keeps_its_last_good_checkpoint(leave, data, shell: Shell, place, mount):
    """A first epoch with room, then none: the same command with room again ends as if there had always been."""
    bundle = "pretrain_3dseg8"
    quiet = place / "quiet"
    assert shell.run(MONAI, *train_words(bundle, data[bundle], quiet), folder=place).code == 0
    full = mount("full", size="420m")
    words = train_words(bundle, data[bundle], full)
    running = shell.start(MONAI, *words, folder=place)
    while not (full / "models" / "model.pt").exists() and running.is_running():
        pass
    while "epoch 1/2" not in running.text() and running.is_running():
        pass
    assert running.is_running(), running.text()
    running.kill()
    running.wait()
    good = content(full / "models" / "model.pt")
    fill(full, leave << 20)
    said(shell.run(MONAI, *words, folder=place))
    assert content(full / "models" / "model.pt") in (good, content(quiet / "models" / "model.pt"))
    (full / "filler").unlink()
    again = shell.run(MONAI, *words, folder=place)
    assert again.code == 0, again
    assert content(full / "models/model.pt") == content(quiet / "models/model.pt")
    assert (full / "eval/history.csv").read_bytes() == (quiet / "eval/history.csv").read_bytes()
    shutil.rmtree(quiet)


def test_a_full_disk_from_the_start_is_said_before_the_first_epoch(data, shell, place, mount):
    full = mount("full", size="1m")
    said(shell.run(MONAI, *train_words("lits_coarse", data["lits_coarse"], full), folder=place))
