"""Two processes in one folder, ten rounds each: one trains and the other is refused; all others wait or share."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
import tiny
from commands import MED3D, MONAI, Done, Shell, refused, train_words, tree
from results import differing, results
from test_kills import lidc, scratch

ROUNDS = 10
BUNDLE = "pretrain_3dseg8"


def together(shell: Shell, module: str, *commands: list[object], folder: Path, seed: object) -> list[Done]:
    """Start commands at once or within half a second of each other, and wait for all."""
    generator = random.Random(str(seed))
    running = []
    for words in commands:
        running.append(shell.start(module, *words, folder=folder))
        time.sleep(generator.choice([0, 0, 0.05, 0.2, 0.5]))
    return [each.wait() for each in running]


PREPARATIONS = {
    "lits": lambda folder: tiny.decathlon(folder / "data", 8),
    "3dseg8": lambda folder: tiny.decathlon(folder / "data" / "Organ", 8),
    "nodules": lambda folder: tiny.nodules(folder / "data"),
    "lidc": lambda folder: lidc(folder / "data"),
}


@pytest.mark.parametrize("kind", PREPARATIONS)
def test_two_preparations_of_one_folder_both_end_with_the_whole(kind, shell, place):
    PREPARATIONS[kind](place)
    words: list[object] = ["prepare", kind, "data", "--output", "out"]
    assert shell.run(MED3D, *words, folder=place).code == 0
    expected = results(place / "out")
    for number in range(ROUNDS):
        shutil.rmtree(place / "out")
        for done in together(shell, MED3D, words, words, folder=place, seed=number):
            assert done.code == 0 and "Traceback" not in done.err, done
        assert differing(results(place / "out"), expected) == [] and scratch(place / "out") == []


def test_two_predictions_into_one_folder_segment_every_scan_once(trained, shell, place):
    tiny.images(place / "scans", 4)
    words: list[object] = ["predict", trained, "scans", "--output", "out"]
    assert shell.run(MED3D, *words, folder=place).code == 0
    expected = results(place / "out")
    for number in range(ROUNDS):
        shutil.rmtree(place / "out")
        for done in together(shell, MED3D, words, words, folder=place, seed=number):
            assert done.code == 0 and "Traceback" not in done.err, done
        found = results(place / "out")
        found.pop("summary.json")
        assert differing(found, {key: value for key, value in expected.items() if key != "summary.json"}) == []
        assert scratch(place / "out") == []


def test_two_fetches_of_one_bundle_bring_it_whole(trained, shell, place):
    assert shell.run(MED3D, "zoo", "pack", trained, "zoo", folder=place).code == 0
    words: list[object] = ["zoo", "fetch", "own", "--source", "zoo", "--output", "out"]
    assert shell.run(MED3D, *words, folder=place).code == 0
    expected = tree(place / "out")
    for number in range(ROUNDS):
        shutil.rmtree(place / "out")
        ends = together(shell, MED3D, words, words, folder=place, seed=number)
        assert 0 in [done.code for done in ends], ends
        for done in ends:  # the second finds the first's, which stays as it is
            assert "Traceback" not in done.err, done
            if done.code:
                refused(done, "own", code=2)
        assert tree(place / "out") == expected


def test_a_second_training_in_a_folder_is_refused_and_the_first_is_not_disturbed(data, shell, place):
    words = train_words(BUNDLE, data[BUNDLE], place / "quiet", epochs=1)
    assert shell.run(MONAI, *words, folder=place).code == 0
    expected = results(place / "quiet")
    for number in range(ROUNDS):
        folder = place / "busy"
        shutil.rmtree(folder, ignore_errors=True)
        words = train_words(BUNDLE, data[BUNDLE], folder, epochs=1)
        ends = together(shell, MONAI, words, words, folder=place, seed=number)
        assert sorted(done.code for done in ends) == [0, 1], [str(done)[:600] for done in ends]
        refused(next(done for done in ends if done.code), "busy", code=1)
        assert differing(results(folder), expected) == []


def test_trainings_that_share_a_cache_and_prepared_data_keep_them_whole(data, shell, place):
    """Two output folders, one cache: entries are either whole or not there."""
    quiet = train_words(BUNDLE, data[BUNDLE], place / "quiet", epochs=1)
    assert shell.run(MONAI, *quiet, folder=place).code == 0
    expected = results(place / "quiet")
    for number in range(3):
        folders = [place / name for name in ("one", "two")]
        for folder in (*folders, place / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        share = ["--train::dataset::cache_dir", place / "cache"]
        commands = [[*train_words(BUNDLE, data[BUNDLE], folder, epochs=1), *share] for folder in folders]
        for done in together(shell, MONAI, *commands, folder=place, seed=number):
            assert done.code == 0, done
        for folder in folders:
            assert differing(results(folder), expected) == []
        assert scratch(place / "cache") == []
