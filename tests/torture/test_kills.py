"""SIGKILL anywhere: the same command again ends as if nothing had happened, bit for bit on a CPU."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import pytest
import tiny
from commands import MED3D, MONAI, Done, Shell, train_words
from lidc_files import Chest, Drawn, Roi
from results import differing, results

SEED = int(os.environ.get("TORTURE_SEED", "0"))
KILLED = -signal.SIGKILL
MOST = 30  # kills of one command
OF_THE_LAST_CALL = ("out/summary.json",)  # of predict: it counts what it found done


@dataclass(frozen=True)
class Task:
    """A command with what it reads and where it writes.

    Args:
        module: whose command line.
        words: the words of the command for a folder.
        prepare: writes what the command reads into the folder.
    """

    module: str
    words: Callable[[Path], list[object]]
    prepare: Callable[[Path], Any] = lambda folder: None

    def run(self, shell: Shell, folder: Path, before: str = "") -> Done:
        """Run it in ``folder``; what it writes lies in ``folder/out``."""
        return shell.run(self.module, *self.words(folder), folder=folder, before=before)


def lidc(folder: Path) -> None:
    """Two scans with a nodule each."""
    for number in (1, 2):
        chest = Chest(shape=(40, 40, 16), uid=f"1.2.{number}", patient=f"LIDC-IDRI-000{number}")
        scan = folder / f"scan{number}"
        chest.write(scan, chest.ball(chest.middle(), 4 + number))
        square = [(15, 15), (25, 15), (25, 25), (15, 25), (15, 15)]
        drawn = Drawn([Roi(slice_, square) for slice_ in (7, 8, 9)], malignancy=4 * number - 3)
        chest.write_xml(scan / "reading.xml", [drawn], [drawn])


def verb(*words: object, prepare: Callable[[Path], Any] = lambda folder: None) -> Task:
    """A verb of ``python -m med3d_ext``, its paths relative to the folder."""
    return Task(MED3D, lambda folder: list(words), prepare)


def evaluated(folder: Path) -> None:
    """Label maps of two runs."""
    tiny.decathlon(folder / "data")
    for number in range(4):
        label = tiny.body(number)[1]
        tiny.save(folder / "pred" / f"case_{number}_seg.nii.gz", label)


QUICK_TASKS = {
    "prepare lits": verb("prepare", "lits", "data", "--output", "out", prepare=lambda f: tiny.decathlon(f / "data")),
    "prepare 3dseg8": verb(
        *("prepare", "3dseg8", "data", "--output", "out"), prepare=lambda f: tiny.decathlon(f / "data" / "Organ")
    ),
    "prepare nodules": verb(
        "prepare", "nodules", "data", "--output", "out", prepare=lambda f: tiny.nodules(f / "data")
    ),
    "prepare lidc": verb("prepare", "lidc", "data", "--output", "out", prepare=lambda f: lidc(f / "data")),
    "evaluate": verb("evaluate", "pred", "data/labelsTr", "--output", "out", prepare=evaluated),
    "new-bundle": verb(
        *("new-bundle", "mine", "--dataset_dir", "data", "--output", "out"),
        prepare=lambda f: tiny.decathlon(f / "data"),
    ),
    "phantoms": verb("phantoms", "nodules", "--folder", "out", "--cases", 4),
}


def chosen(found: dict[tuple[str, str], int], seed: str) -> Iterator[tuple[str, str, int]]:
    """One occurrence of every kind of moment, drawn by a seed."""
    generator = random.Random(f"{SEED} {seed}")
    for (event, name), count in sorted(found.items()):
        yield event, name, generator.randint(1, count)


def torment(task: Task, shell: Shell, place: Path, subtests: Any, title: str) -> int:
    """Kill a task at every kind of moment, and inside of every file; the second call ends like a quiet one.

    Returns:
        how many kills were tried; each that was not survived is a failed subtest.
    """
    source, folder, log = place / "source", place / "work", place / "moments"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    task.prepare(source)
    fresh(source, folder)
    done = task.run(shell, folder, f"import faults; faults.record({str(folder)!r}, {str(log)!r})")
    assert done.code == 0, done
    expected = results(folder)
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found = faults.moments(log)
    assert found, "the command writes nothing"
    kills = [(f"{event} {name} #{n}", "kill_at", (event, name, n)) for event, name, n in chosen(found, title)]
    for (event, name), count in sorted(found.items()):
        size = next((size for file, size in sizes.items() if file in name), 0)
        if event == "open" and size > 64:
            kills.append((f"inside {name} #{count}", "tear_at", (name, count, size // 2)))
    if len(kills) > MOST:  # an archive has a moment for each of its files
        kills = sorted(random.Random(f"{SEED} {title}").sample(kills, MOST))
    remains: dict[str, list[str]] = {}
    for moment, kind, arguments in kills:
        fresh(source, folder)
        with subtests.test(f"{title}: killed at {moment}"):
            killed = task.run(shell, folder, f"import faults; faults.{kind}({str(folder)!r}, *{arguments!r})")
            assert killed.code == (KILLED if kind == "kill_at" else -signal.SIGXFSZ), killed
            again = task.run(shell, folder)
            assert again.code == 0, again
            left = scratch(folder)
            if left:
                remains[moment] = [path.name for path in left]
                for path in left:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            assert [name for name in differing(results(folder), expected) if name not in OF_THE_LAST_CALL] == []
    with subtests.test(f"{title}: what a killed call leaves behind is removed by the next"):
        assert remains == {}
    return len(kills)


def fresh(source: Path, folder: Path) -> None:
    """The folder with what the command reads, and nothing else; files keep their times, which some results hold."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def scratch(folder: Path) -> list[Path]:
    """Hidden or temporary files and folders, apart from locks and what a verb remembers on purpose."""
    found = [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".part")]
    found = [path for path in found if path.name not in (".lock", ".lidc") and path.suffix != ".lock"]
    return [path for path in found if not any(parent in found for parent in path.parents)]


@pytest.mark.quick
@pytest.mark.parametrize("name", QUICK_TASKS)
def test_a_verb_killed_at_any_write_is_repeated_as_if_it_had_not_been(name, shell, place, subtests, record_property):
    record_property("kills", torment(QUICK_TASKS[name], shell, place, subtests, name))


def test_predict_killed_at_any_write_ends_with_the_same_label_maps(trained, shell, place, subtests):
    words = ["predict", trained, "scans", "--output", "out"]
    task = Task(MED3D, lambda folder: words, lambda folder: tiny.images(folder / "scans"))
    torment(task, shell, place, subtests, "predict")


def test_pack_and_fetch_killed_at_any_write_end_with_the_whole_bundle(trained, shell, place, subtests):
    pack = Task(MED3D, lambda folder: ["zoo", "pack", trained, "out", "--overwrite"])
    torment(pack, shell, place, subtests, "zoo pack")
    (place / "work" / "out").rename(place / "zoo")
    fetch = Task(MED3D, lambda folder: ["zoo", "fetch", "own", "--source", place / "zoo", "--output", "out"])
    torment(fetch, shell, place, subtests, "zoo fetch")


@pytest.mark.parametrize("bundle", ["lits_coarse", "pretrain_3dseg8"])
def test_a_training_killed_at_any_write_ends_with_the_same_weights(bundle, data, shell, place, subtests):
    task = Task(MONAI, lambda folder: train_words(bundle, data[bundle], folder / "out", epochs=2))
    torment(task, shell, place, subtests, bundle)


@pytest.fixture(scope="session")
def quiet_trainings(shell, data, tmp_path_factory) -> Callable[[str], tuple[dict[str, Any], float]]:
    """Results of an uninterrupted training of a bundle, and its seconds."""
    known: dict[str, tuple[dict[str, Any], float]] = {}

    def get(bundle: str) -> tuple[dict[str, Any], float]:
        if bundle not in known:
            folder = tmp_path_factory.mktemp("quiet")
            begin = time.monotonic()
            done = shell.run(MONAI, *train_words(bundle, data[bundle], folder), folder=folder)
            assert done.code == 0, done
            known[bundle] = results(folder), time.monotonic() - begin
            shutil.rmtree(folder)
        return known[bundle]

    return get


@pytest.mark.parametrize("number", range(20))
def test_a_training_killed_at_a_random_moment_ends_with_the_same_weights(number, data, shell, place, quiet_trainings):
    bundle = list(tiny.BUNDLES)[number % len(tiny.BUNDLES)]
    expected, seconds = quiet_trainings(bundle)
    words = train_words(bundle, data[bundle], place)
    running = shell.start(MONAI, *words, folder=place)
    time.sleep(random.Random(f"{SEED} {number}").uniform(0.05, 0.9) * seconds)
    running.kill()
    assert running.wait().code == KILLED, "it had ended before; the kill came too late"
    again = shell.run(MONAI, *words, folder=place)
    assert again.code == 0, again
    assert differing(results(place), expected) == []


def test_a_comparison_killed_at_random_moments_ends_with_the_same_table(trained, data, shell, place):
    words = [
        "compare",
        trained,
        "--inits",
        "scratch",
        "--epochs",
        1,
        "--spatial_size",
        "[32,32,32]",
        "--val_interval",
        1,
    ]
    words += ["--dataset_dir", data["pretrain_3dseg8"], "--output", "out"]
    quiet, killed = place / "quiet", place / "killed"
    for folder in (quiet, killed):
        folder.mkdir()
    begin = time.monotonic()
    done = shell.run(MED3D, *words, folder=quiet, seconds=600)
    seconds = time.monotonic() - begin
    assert done.code == 0, done
    generator = random.Random(SEED)
    for part in (0.2, 0.6):
        running = shell.start(MED3D, *words, folder=killed)
        time.sleep(seconds * part * generator.uniform(0.5, 1))
        running.kill()
        assert running.wait().code == KILLED
    again = shell.run(MED3D, *words, folder=killed, seconds=600)
    assert again.code == 0, again
    assert (killed / "out" / "table.md").read_text() == (quiet / "out" / "table.md").read_text()
    weights = [sorted(folder.rglob("model.pt")) for folder in (killed, quiet)]
    assert [results(path.parent) for path in weights[0]] == [results(path.parent) for path in weights[1]]
