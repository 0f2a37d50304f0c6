"""The sanity sheet says what is odd about each training case, and draws labels where they are."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from monai.transforms import Compose

from med3d_ext.data import SeededDataset
from med3d_ext.data.prepared_files import absent_classes
from med3d_ext.handlers import SanitySheet
from med3d_ext.handlers.sanity import case_oddities, choose, picture_oddities
from med3d_ext.transforms import LoadVolumed

CASE = {
    "shape": [20, 20, 20],
    "spacing": [1.0, 1.0, 2.0],
    "labels": {"0": 7000, "1": 1000},
    "target_box": [[2, 2, 2], [12, 12, 12]],
    "intensity": {"minimum": -1000.0, "maximum": 900.0},
}
CT = {"modality": "CT", "spacing_median": [1.0, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"labels": {"0": 8000}, "target_box": None}, "no foreground"),
        ({"labels": {"0": 7997, "1": 3}}, "3 voxels only"),
        ({"target_box": [[0, 2, 2], [20, 12, 12]]}, "touches 2 of the 6 faces"),
        ({"spacing": [1.0, 1.0, 9.0]}, "far from the median"),
        ({"spacing": [0.001, 0.001, 0.002]}, "far from the median"),
        ({"intensity": {"minimum": 0.0, "maximum": 255.0}}, "not the HU of a CT"),
        ({"intensity": {"minimum": -100.0, "maximum": -100.0}}, "all voxels of the image are equal"),
    ],
)
def test_each_oddity_has_a_line(change, line):
    lines = list(case_oddities({**CASE, **change}, CT))
    assert len(lines) == 1 and line in lines[0]


def test_a_usual_case_has_no_oddity_and_values_of_mr_are_not_held_against_hounsfield():
    assert list(case_oddities(CASE, CT)) == []
    assert list(case_oddities({**CASE, "intensity": {"minimum": 0.0, "maximum": 255.0}}, {"modality": "MR"})) == []


def test_a_class_that_no_training_case_holds_is_named_after_its_label_map():
    domain = {"classes": {"0": "background", "1": "liver", "2": "tumor"}, "label_map": {"0": 0, "3": 1, "255": 2}}
    one = {"split": "training", "label": "one.nii", "labels": {"0": 1, "3": 1}}
    other = {"split": "test", "label": "other.nii", "labels": {"255": 1}}
    assert list(absent_classes(domain, [one, other])) == [
        "no training case holds the class 2 (tumor), test cases do: it cannot be learned"
    ]
    one["labels"]["255"] = 1
    assert list(absent_classes(domain, [one, other])) == []


def test_a_label_in_the_air_is_odd_and_one_in_the_body_is_not():
    image = np.zeros((1, 20, 20, 20))
    image[:, 5:15, 5:15, 5:15] = 100
    body, air = (np.zeros_like(image) for _ in range(2))
    body[:, 6:10, 6:10, 6:10] = 1
    air[:, :4, :4, :4] = 1
    assert list(picture_oddities(image, body)) == []
    assert list(picture_oddities(image, air)) == ["100% of the label is on the darkest background"]


def test_odd_cases_and_every_domain_are_drawn():
    items = [{"label": "x", "domain": "ab"[number > 5]} for number in range(10)] + [{"label": None}]
    chosen = choose(items, {4: ["odd"], 10: []}, 4)
    assert chosen[0] == 4 and {0, 6} <= set(chosen) and len(chosen) == 4 and 10 not in chosen


def test_the_sheet_of_a_folder_names_what_is_odd_and_changes_no_random_draw(liver_folder, tmp_path):
    root = liver_folder(cases=3)
    paths = [(str(root / f"imagesTr/liver_{n}.nii.gz"), str(root / f"labelsTr/liver_{n}.nii.gz")) for n in range(3)]
    items = [{"image": image, "label": label, "domain": "Liver"} for image, label in paths]
    cases = [{**CASE, "image": image, "label": label, "split": "training"} for image, label in paths]
    cases[1]["target_box"] = [[0, 2, 2], [12, 12, 12]]
    facts = {**CT, "classes": {"0": "background", "1": "liver"}}
    data = SimpleNamespace(domains={"Liver": facts}, cases={"Liver": cases})
    dataset = SeededDataset(items, Compose([LoadVolumed()]), str(tmp_path / "cache"))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    SanitySheet(str(tmp_path / "o"), dataset, data).started(None)
    record = json.loads((tmp_path / "o" / "sanity.json").read_text())
    assert record["oddities"] == ["liver_1.nii.gz: the label touches 1 of the 6 faces of the image"]
    assert record["cases"][0] == "liver_1.nii.gz" and len(record["cases"]) == 3
    assert (tmp_path / "o" / "sanity.png").read_bytes()[:4] == b"\x89PNG"
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
