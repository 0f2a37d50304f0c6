"""A split that the list gives wins; a case counts once; classes that nothing teaches are named."""

from __future__ import annotations

import json
import logging
import random
import shutil

import nibabel
import numpy as np
import pytest

from med3d_ext.data.prepared_data import PreparedData, images_to_segment
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.prepare import PREPARE


def relist(folder, **lists):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **lists}))
    return folder


def entries(folder):
    return json.loads((folder / "dataset.json").read_text())["training"]


def names(data) -> dict[str, list[str]]:
    return {split: sorted(item["image"].rsplit("/", 1)[1] for item in data.items(split)) for split in SPLITS}


def listed(cases) -> list[str]:
    return sorted(case["image"].rsplit("/", 1)[1] for case in cases)


@pytest.fixture
def lungs(liver_folder):
    def make(cases):
        return relist(liver_folder("lungs", cases), labels={"0": "background", "1": "right lung", "2": "left lung"})

    return make


@pytest.mark.parametrize("kind", ["lits", "3dseg8", "lung"])
def test_random_given_lists_are_the_split(liver_folder, lungs, tmp_path, kind):
    folder = lungs(14) if kind == "lung" else liver_folder(cases=14)
    cases = entries(folder)
    for seed in range(2):
        random.Random(seed).shuffle(cases)
        lists = {"training": cases[:9], "validation": cases[9:11], "test": cases[11:]}
        data = PreparedData(kind, str(relist(folder, **lists)), str(tmp_path / "run"), seed)
        assert names(data) == {name: listed(cases) for name, cases in lists.items()}


def test_without_given_validation_cases_some_are_drawn_from_training_and_test_cases_never(liver_folder, tmp_path):
    folder = liver_folder(cases=14)
    cases = entries(folder)
    data = PreparedData("lits", str(relist(folder, training=cases[:11], test=cases[11:])), str(tmp_path / "a"))
    assert names(data)["test"] == listed(cases[11:])
    assert [len(names(data)[split]) for split in SPLITS] == [10, 1, 3]
    relist(folder, training=cases[:11], validation=cases[11:], test=[])
    data = PreparedData("lits", str(folder), str(tmp_path / "b"))
    assert names(data) == {"training": listed(cases[:11]), "validation": listed(cases[11:]), "test": []}


@pytest.mark.parametrize(
    "lists",
    [{}, {"validation": [], "test": []}, {"test": ["./imagesTs/a.nii.gz"]}, {"test": [{"image": "./b.nii.gz"}]}],
)
def test_empty_lists_and_lists_without_labels_are_no_split(liver_folder, tmp_path, lists):
    data = PreparedData("lits", str(relist(liver_folder(cases=12), **lists)), str(tmp_path / "run"))
    assert [len(names(data)[split]) for split in SPLITS] == [10, 1, 1]


def test_fold_0_of_the_entries_is_validation_and_with_folds_each_is_tested_in_turn(lungs, tmp_path):
    folder = lungs(12)
    cases = [{**case, "fold": number % 3} for number, case in enumerate(entries(folder))]
    data = PreparedData("lung", str(relist(folder, training=cases)), str(tmp_path / "a"))
    assert names(data) == {"training": listed(cases[1::3] + cases[2::3]), "validation": listed(cases[::3]), "test": []}
    for fold in range(3):
        data = PreparedData("lung", str(folder), str(tmp_path / "b"), options={"folds": 3, "fold": fold})
        assert names(data)["test"] == listed(cases[fold::3])


def test_a_given_split_outlives_a_preparation_from_a_prepared_folder(lungs, tmp_path):
    folder = lungs(8)
    cases = entries(folder)
    lists = {"training": cases[3:], "validation": cases[:1], "test": cases[1:3]}
    PREPARE["lung"](relist(folder, **lists), tmp_path / "out")
    data = PreparedData("lung", str(tmp_path / "out"), str(tmp_path / "run"), options={"num_classes": 3})
    assert data.folder != tmp_path / "out"
    assert names(data) == {name: listed(cases) for name, cases in lists.items()}


def with_folds(cases, value=None):
    return {"training": [{**case, "fold": number % 3 if value is None else value} for number, case in enumerate(cases)]}


# From the entries of a list of six to other lists; the options; what the refusal says
REFUSALS = {
    "some without label": (
        lambda cases: {"training": cases[:2], "test": [cases[2], {"image": cases[3]["image"]}]},
        {},
        "entry 1 under 'test' of .* has no label and others have",
    ),
    "other folds": (with_folds, {"folds": 5, "fold": 1}, r"in the folds \[0, 1, 2\]"),
    "no number": (lambda cases: with_folds(cases, "a"), {}, "'fold' of each case of 'lungs' must be a whole number"),
    "divided": (
        lambda cases: {"training": cases[:4], "test": cases[4:]},
        {"folds": 2},
        "gives validation or test cases, and --folds 2 another split",
    ),
    "two sides": (
        lambda cases: {"training": cases, "test": cases[:1]},
        {},
        "liver_0.nii.gz': one image, listed as training and as test",
    ),
    "two labels": (
        lambda cases: {"training": [*cases, {**cases[0], "label": "other.nii.gz"}]},
        {},
        "liver_0.nii.gz': one image with two different labels .*other.nii.gz",
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_list_that_contradicts_itself_or_an_option_is_refused(lungs, tmp_path, fault):
    change, options, message = REFUSALS[fault]
    folder = lungs(6)
    label = nibabel.load(folder / "labelsTr" / "liver_0.nii.gz")
    other = nibabel.Nifti1Image(2 * (np.asarray(label.dataobj) > 0).astype(np.uint8), label.affine, label.header)
    nibabel.save(other, folder / "other.nii.gz")
    relist(folder, **change(entries(folder)))
    with pytest.raises(InputError, match=message):
        PreparedData("lung", str(folder), str(tmp_path / "run"), options=options)


def test_a_case_that_is_listed_twice_counts_once_with_a_warning(liver_folder, tmp_path, caplog):
    folder = liver_folder(cases=4)
    cases = entries(folder)
    for key in ("image", "label"):
        shutil.copy(folder / cases[1][key], folder / f"{key}sTr" / "copy.nii.gz")
    copy = {"image": "./imagesTr/copy.nii.gz", "label": "./labelsTr/copy.nii.gz"}
    relist(folder, training=[*cases, cases[0], copy])
    with caplog.at_level(logging.WARNING):
        data = PreparedData("lits", str(folder), str(tmp_path / "run"))
    assert sum(map(len, names(data).values())) == 4
    assert "liver_0.nii.gz': one case, listed twice" in caplog.text
    assert "liver_1.nii.gz' and '" in caplog.text and "copy.nii.gz': one case, listed twice" in caplog.text
    # The label packed anew, the same voxels
    image = nibabel.load(folder / cases[1]["label"])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.int16), image.affine), folder / copy["label"])
    assert sum(map(len, names(PreparedData("lits", str(folder), str(tmp_path / "run"))).values())) == 4


def test_a_class_that_no_training_case_holds_is_named_with_where_it_is(liver_folder, tmp_path, nifti, caplog):
    folder = liver_folder(cases=4)
    cases = entries(folder)
    for case in cases[:3]:
        image = nibabel.load(folder / case["label"])
        nifti(folder / case["label"], np.minimum(np.asarray(image.dataobj), 1), image.affine)
    relist(folder, training=cases[:2], validation=cases[2:3], test=cases[3:])
    with caplog.at_level(logging.WARNING):
        PREPARE["lits"](folder, tmp_path / "out")
    assert "Task03_Liver: no training case holds the class 2 (cancer), test cases do" in caplog.text
    caplog.clear()
    relist(folder, training=cases[2:], validation=cases[:1], test=cases[1:2])
    PREPARE["lits"](folder, tmp_path / "out")
    assert "no training case" not in caplog.text


def test_a_bundle_of_ones_own_takes_no_phantoms(tmp_path):
    with pytest.raises(InputError, match="no --dataset_dir given, and this bundle needs its own data"):
        PreparedData("3dseg8", None, str(tmp_path), phantoms=False)
    with pytest.raises(InputError, match="no --dataset_dir given"):
        images_to_segment(None, "3dseg8", phantoms=False)
