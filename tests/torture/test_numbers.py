"""Figures cannot lie: what is missing, swapped, empty or elsewhere is refused or penalized, never dropped."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import MED3D, MONAI, Done, Shell, config, refused

pytestmark = pytest.mark.quick
CASES = 5


@pytest.fixture
def evaluate(shell: Shell, place: Path) -> Callable[..., tuple[Done, dict]]:
    """Perfect predictions of five cases in ``pred``; evaluates them after the test has changed some."""
    tiny.decathlon(place / "data", CASES)
    (place / "pred").mkdir()
    for path in (place / "data" / "labelsTr").iterdir():
        shutil.copy(path, place / "pred" / path.name.replace(".nii", "_seg.nii"))

    def run(*words: object) -> tuple[Done, dict]:
        done = shell.run(MED3D, "evaluate", "pred", "data/labelsTr", "--output", "out", *words, folder=place)
        summary = place / "out" / "summary.json"
        return done, json.loads(summary.read_text()) if summary.is_file() else {}

    return run


def voxels(number: int) -> np.ndarray:
    return tiny.body(number)[1]


def store(place: Path, number: int, label: np.ndarray, affine: np.ndarray = tiny.AFFINE) -> None:
    tiny.save(place / "pred" / f"case_{number}_seg.nii.gz", label.astype(np.uint8), affine)


def rows(place: Path) -> list[dict[str, str]]:
    with open(place / "out" / "cases.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_perfect_predictions_have_dice_1(evaluate):
    done, summary = evaluate()
    assert done.code == 0 and summary["n"] == CASES, done
    assert all(summary["classes"][name]["dice"]["mean"] == 1 for name in ("1", "2"))


def test_a_missing_prediction_is_named_in_the_log_the_table_and_the_summary(evaluate, place):
    (place / "pred" / "case_2_seg.nii.gz").unlink()
    done, summary = evaluate()
    assert "case_2" in done.err and "case_2" in json.dumps(summary), done
    assert done.code != 0 or "case_2" in done.out, "the table that is copied into papers does not say it"


def test_swapped_cases_are_measured_as_they_are_named(evaluate, place):
    one, two = (place / "pred" / f"case_{number}_seg.nii.gz" for number in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    _, summary = evaluate()
    assert summary["n"] == CASES
    dice = {row["case"]: float(row["dice"]) for row in rows(place) if row["class"] == "1"}
    swapped = (
        2 * np.logical_and(voxels(0) == 1, voxels(1) == 1).sum() / ((voxels(0) == 1).sum() + (voxels(1) == 1).sum())
    )
    assert dice["case_0"] == pytest.approx(swapped, abs=1e-4) and dice["case_1"] == pytest.approx(swapped, abs=1e-4)


def test_swapped_classes_have_dice_0(evaluate, place):
    for number in range(CASES):
        label = voxels(number)
        store(place, number, np.where(label > 0, 3 - label, 0))
    _, summary = evaluate()
    assert [summary["classes"][name]["dice"]["mean"] for name in ("1", "2")] == [0, 0]


def test_a_class_that_no_prediction_has_counts_as_missed_everywhere(evaluate, place):
    for number in range(CASES):
        store(place, number, np.minimum(voxels(number), 1))
    _, summary = evaluate()
    assert summary["classes"]["2"]["dice"]["mean"] == 0 and summary["classes"]["2"]["missed"] == CASES


def test_an_empty_prediction_counts_with_dice_0_and_the_largest_distance(evaluate, place):
    store(place, 3, voxels(3) * 0)
    _, summary = evaluate()
    measured = summary["classes"]["1"]
    assert measured["missed"] == 1 and measured["dice"]["n"] == CASES
    assert measured["dice"]["mean"] == pytest.approx((CASES - 1) / CASES)
    diagonal = float(np.linalg.norm(np.array(tiny.SHAPE) * np.diag(tiny.AFFINE)[:3]))
    distance = max(float(row["hd95_mm"]) for row in rows(place) if row["class"] == "1")
    assert distance == pytest.approx(diagonal, rel=0.1)


def test_an_empty_truth_counts_what_was_found_falsely(evaluate, place):
    tiny.save(place / "data/labelsTr/case_3.nii.gz", voxels(3) * 0)
    _, summary = evaluate()
    measured = summary["classes"]["1"]
    assert measured["falsely_found"] == 1 and measured["dice"]["n"] == CASES and measured["dice"]["minimum"] == 0


@pytest.mark.parametrize("shift", [np.eye(4, k=3) * 3, np.diag([0.2, 0, 0, 0]), np.diag([-3.0, 0, 0, 0])])
def test_another_grid_is_refused_by_name(shift, evaluate, place):
    store(place, 1, voxels(1), tiny.AFFINE + shift)
    done, summary = evaluate()
    refused(done, "case_1_seg", code=1)
    assert summary == {}


def test_the_same_grid_stored_in_another_order_is_the_same_or_refused(evaluate, place):
    """Flipped in memory, at the same place in the world: Dice 1 or a refusal, not something between."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = tiny.SHAPE[0] - 1
    store(place, 1, voxels(1)[::-1], tiny.AFFINE @ flip)
    done, summary = evaluate()
    if done.code:
        refused(done, "case_1_seg", code=1)
    else:
        assert summary["classes"]["1"]["dice"]["minimum"] == 1


def test_a_case_twice_is_refused(evaluate, place):
    shutil.copy(place / "pred/case_1_seg.nii.gz", place / "pred/case_1.nii.gz")
    refused(evaluate()[0], "case_1", code=2)


def test_the_mean_is_that_of_the_rows(evaluate, place):
    generator = np.random.default_rng(0)
    for number in range(CASES):
        label = voxels(number)
        store(place, number, np.where(generator.random(label.shape) < 0.2, 0, label))
    _, summary = evaluate()
    for name in ("1", "2"):
        values = [float(row["dice"]) for row in rows(place) if row["class"] == name]
        assert len(values) == CASES and summary["classes"][name]["dice"]["mean"] == pytest.approx(
            np.mean(values), abs=1e-4
        )


def test_a_comparison_on_other_cases_says_on_how_many_it_rests(evaluate, place):
    shutil.copytree(place / "pred", place / "other")
    (place / "other/case_4_seg.nii.gz").unlink()
    done, summary = evaluate("--compare", "other")
    if done.code:
        refused(done, "case_4", code=2)
    else:
        assert "case_4" in done.err and f'"n": {CASES - 1}' in json.dumps(summary["comparison"]), done


def test_an_evaluation_of_a_bundle_without_its_test_images_is_refused(own, shell, place):
    tiny.decathlon(place / "data", 4, ("background", "a", "b"), "MRI")
    files = config(own, "train", "evaluate")
    words = ["run", "--config_file", files, "--dataset_dir", "data", "--spatial_size", "[32,32,32]"]
    words += ["--output_dir", "out", "--ckpt_dir", own / "models"]
    first = shell.run(MONAI, *words, folder=place)
    assert first.code == 0, first
    summary = json.loads((place / "out/test/summary.json").read_text())
    tested = (place / "out/test/cases.csv").read_text().splitlines()[1].split(",")
    name = next(cell for cell in tested if "case_" in cell)
    image = next((place / "data/imagesTr").glob(f"*{Path(name).name.split('.')[0]}*"))
    image.write_bytes(image.read_bytes()[:200])
    second = shell.run(MONAI, *words, folder=place)
    refused(second, image.name, code=1)
    assert summary == json.loads((place / "out/test/summary.json").read_text())
