"""Less than a run wants: read-only folders, dying workers, little shared memory, a GPU out of memory; and no leak."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tiny
from commands import MED3D, MONAI, Running, Shell, config, refused, train_words, tree
from results import content, differing, results

BUNDLE = "pretrain_3dseg8"


@pytest.mark.parametrize("bundle", list(tiny.BUNDLES))
def test_data_that_are_read_only_train_and_stay_as_they_are(bundle, data, shell, place, mount):
    before = tree(data[bundle])
    source = mount(f"data_{bundle}", source=data[bundle])
    done = shell.run(MONAI, *train_words(bundle, source, place, epochs=1), folder=place)
    assert done.code == 0, done
    assert tree(data[bundle]) == before


def test_prepare_into_read_only_data_names_the_way_out(data, shell, place, mount):
    mount("source", source=data["lits_coarse"])
    done = shell.run(MED3D, "prepare", "lits", "source", folder=place)
    refused(done, "source", "output", code=2)


def test_a_read_only_bundle_predicts_checks_and_packs(trained, data, shell, place, mount):
    tiny.images(place / "scans")
    own = mount("own", source=trained)
    for words in (
        ["predict", own, "scans", "--output", "out"],
        ["check", own, "--dataset_dir", data[BUNDLE]],
        ["zoo", "pack", own, "zoo"],
    ):
        done = shell.run(MED3D, *words, folder=place)
        assert done.code == 0, done


def test_a_training_in_a_read_only_bundle_names_the_folder_or_writes_elsewhere(trained, data, shell, place, mount):
    own = mount("own", source=trained)
    words = ["run", "--config_file", config(own), "--dataset_dir", data[BUNDLE], "--epochs", 1, "--init", "scratch"]
    refused(shell.run(MONAI, *words, "--spatial_size", "[32,32,32]", folder=place), "own", code=1)
    done = shell.run(MONAI, *train_words(own, data[BUNDLE], place, epochs=1), folder=place)
    assert done.code == 0, done


def test_workers_that_die_are_named_with_what_to_change(data, shell, place):
    words = [*train_words(BUNDLE, data[BUNDLE], place), "--num_workers", 2]
    done = shell.run(MONAI, *words, folder=place, before="import faults; faults.workers_die()", seconds=120)
    refused(done, "num_workers", code=1)


def test_little_shared_memory_adapts_or_is_named_with_what_to_change(data, shell, place):
    words = [*train_words(BUNDLE, data[BUNDLE], place), "--num_workers", 2]
    done = shell.run(MONAI, *words, folder=place, before="import faults; faults.small_shared_memory()", seconds=120)
    if done.code == 77:
        pytest.skip("needs the right to mount")
    if done.code != 0:
        refused(done, "num_workers", code=1)


@pytest.mark.parametrize("bundle", list(tiny.BUNDLES))
def test_a_training_out_of_gpu_memory_says_what_to_change(bundle, data, shell, place):
    words = train_words(bundle, data[bundle], place)
    done = shell.run(MONAI, *words, folder=place, before="import faults; faults.out_of_memory()")
    refused(done, "batch_size", code=1)


def test_a_scan_that_is_too_large_for_the_gpu_costs_the_others_nothing(trained, shell, place):
    tiny.images(place / "scans")
    words = ["predict", trained, "scans", "--output", "out"]
    done = shell.run(MED3D, *words, folder=place, before="import faults; faults.out_of_memory()")
    refused(done, "scan_0", "scan_2", code=1)
    assert "memory" in done.err, done
    again = shell.run(MED3D, *words, folder=place)
    assert again.code == 0 and len(list((place / "out").glob("*_seg.nii.gz"))) == 3, again


def test_the_number_of_workers_changes_no_weight(data, shell, place):
    for number in (0, 2):
        words = [*train_words(BUNDLE, data[BUNDLE], place / str(number)), "--num_workers", number]
        done = shell.run(MONAI, *words, folder=place)
        assert done.code == 0, done
    one, two = (content(place / str(number) / "models" / "model.pt") for number in (0, 2))
    assert one == two


def resident(running: Running) -> float:
    """Memory of a process, MB."""
    try:
        return int(Path(f"/proc/{running.pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (OSError, IndexError):
        return 0.0


def course(running: Running, mark: str, seconds: float) -> list[tuple[int, float]]:
    """How often ``mark`` has been printed, and memory, as long as the command runs."""
    points = [(0, 0.0)]
    begin = time.monotonic()
    while running.is_running() and time.monotonic() - begin < seconds:
        count, memory = running.text().count(mark), resident(running)
        if memory and count != points[-1][0]:
            points.append((count, memory))
        time.sleep(0.05)
    return points[1:]


def is_flat(points: list[tuple[int, float]], total: int) -> None:
    """The last quarter takes no more memory than the second: a leak of a volume a case would show."""
    second = [memory for count, memory in points if total / 4 <= count < total / 2]
    last = [memory for count, memory in points if count >= 3 * total / 4]
    assert second and last, points
    assert max(last) - max(second) < 25, (
        f"grew by {max(last) - max(second):.0f} MB: {points[:: max(1, len(points) // 20)]}"
    )


def test_memory_is_flat_over_200_predictions(trained, shell: Shell, place):
    cases = 200
    tiny.images(place / "scans", cases)
    running = shell.start(MED3D, "predict", trained, "scans", "--output", "out", folder=place)
    points = course(running, "left] scan_", 900)
    done = running.wait(10)
    assert done.code == 0 and len(list((place / "out").glob("*_seg.nii.gz"))) == cases, done
    is_flat(points, cases)


def test_memory_is_flat_over_200_epochs(data, shell: Shell, place, mount):
    """One case an epoch, a validation every 50th; in a tmpfs, for it writes 115 MB each epoch."""
    epochs = 200
    words = train_words(BUNDLE, data[BUNDLE], mount("full", size="1g"), epochs)
    words[words.index("--val_interval") + 1] = 50
    running = shell.start(MONAI, *words, "--samples_per_domain", 1, folder=place)
    points = course(running, "epoch ", 900)
    done = running.wait(10)
    assert done.code == 0, done
    is_flat(points, points[-1][0])


def test_results_are_those_of_an_idle_machine(data, shell, place):
    """Two trainings at once, in two folders, end like one alone."""
    folders = [place / name for name in ("a", "b", "alone")]
    both = [shell.start(MONAI, *train_words(BUNDLE, data[BUNDLE], each, 1), folder=place) for each in folders[:2]]
    assert [running.wait().code for running in both] == [0, 0]
    assert shell.run(MONAI, *train_words(BUNDLE, data[BUNDLE], folders[2], 1), folder=place).code == 0
    expected = results(folders[2])
    assert [differing(results(each), expected) for each in folders[:2]] == [[], []]
