"""A split that the list gives wins; a case counts once; classes that nothing teaches are named."""

from __future__ import annotations

import json
import logging
import random
import shutil

import nibabel
import numpy as np
import pytest

from med3d_ext.data import splits as splits_module
from med3d_ext.data.fingerprint import sha256
from med3d_ext.data.prepared_data import PreparedData, images_to_segment
from med3d_ext.data.splits import SPLITS, split_cases
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


@pytest.mark.parametrize("kind", ["lits", "3dseg8", "lung"])
@pytest.mark.parametrize("seed", range(3))
def test_random_given_lists_are_the_split(liver_folder, tmp_path, kind, seed):
    generator = random.Random(seed)
    folder = liver_folder("Task03_Liver" if kind != "lung" else "lungs", cases=14)
    cases = entries(folder)
    generator.shuffle(cases)
    lists = {"training": cases[:9], "validation": cases[9:11], "test": cases[11:]}
    if kind == "lung":
        relist(folder, labels={"0": "background", "1": "right lung", "2": "left lung"})
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


def test_a_list_of_which_some_have_labels_is_refused(liver_folder, tmp_path):
    folder = liver_folder(cases=4)
    cases = entries(folder)
    relist(folder, training=cases[:2], test=[cases[2], {"image": cases[3]["image"]}])
    with pytest.raises(InputError, match="entry 1 under 'test' of .* has no label and others have"):
        PREPARE["lits"](folder, tmp_path / "out")


def test_fold_0_of_the_entries_is_validation_and_with_folds_each_is_tested_in_turn(liver_folder, tmp_path):
    folder = relist(liver_folder("lungs", cases=12), labels={"0": "background", "1": "right lung", "2": "left lung"})
    cases = [{**case, "fold": number % 3} for number, case in enumerate(entries(folder))]
    relist(folder, training=cases)
    data = PreparedData("lung", str(folder), str(tmp_path / "a"))
    assert names(data) == {"training": listed(cases[1::3] + cases[2::3]), "validation": listed(cases[::3]), "test": []}
    for fold in range(3):
        data = PreparedData("lung", str(folder), str(tmp_path / "b"), options={"folds": 3, "fold": fold})
        assert names(data)["test"] == listed(cases[fold::3])
    with pytest.raises(InputError, match=r"in the folds \[0, 1, 2\]"):
        PreparedData("lung", str(folder), str(tmp_path / "c"), options={"folds": 5, "fold": 1})
    relist(folder, training=[case | {"fold": "a"} for case in cases])
    with pytest.raises(InputError, match="'fold' of each case of 'lungs' must be a whole number"):
        PreparedData("lung", str(folder), str(tmp_path / "d"))


def test_a_given_split_outlives_a_preparation_from_a_prepared_folder(liver_folder, tmp_path):
    folder = relist(liver_folder("lungs", cases=8), labels={"0": "background", "1": "right lung", "2": "left lung"})
    cases = entries(folder)
    lists = {"training": cases[3:], "validation": cases[:1], "test": cases[1:3]}
    PREPARE["lung"](relist(folder, **lists), tmp_path / "out")
    data = PreparedData("lung", str(tmp_path / "out"), str(tmp_path / "run"), options={"num_classes": 3})
    assert data.folder != tmp_path / "out"
    assert names(data) == {name: listed(cases) for name, cases in lists.items()}


def test_a_given_split_is_not_divided_into_folds(liver_folder, tmp_path):
    folder = relist(liver_folder("lungs", cases=6), labels={"0": "background", "1": "right lung", "2": "left lung"})
    cases = entries(folder)
    relist(folder, training=cases[:4], test=cases[4:])
    with pytest.raises(InputError, match="gives validation or test cases, and --folds 2 another split"):
        PreparedData("lung", str(folder), str(tmp_path / "run"), options={"folds": 2})


@pytest.mark.parametrize("side", ["training", "validation"])
def test_a_pinned_test_image_that_is_given_for_training_is_refused_by_name(liver_folder, tmp_path, monkeypatch, side):
    folder = liver_folder(cases=6)
    cases = entries(folder)
    pinned = folder / cases[0]["image"]
    monkeypatch.setattr(splits_module, "held_out", lambda: frozenset({sha256(pinned)}))
    others = {"training": cases[1:4], "validation": cases[4:5], "test": cases[5:]}
    for lists in (others | {"test": cases[5:] + cases[:1]}, {"training": cases}):  # where it may be, and no given split
        data = PreparedData("lits", str(relist(folder, **{"validation": [], "test": [], **lists})), str(tmp_path / "a"))
        assert pinned.name in names(data)["test"]
    relist(folder, **{**others, side: others[side] + cases[:1]})
    with pytest.raises(InputError, match=f"liver_0.nii.gz' is given as {side}, and it is a test case of every bundle"):
        PreparedData("lits", str(folder), str(tmp_path / "b"))


def test_a_scan_of_two_domains_is_on_its_given_side_in_both():
    def cases(numbers, given=None):
        return [{"sha256": str(n), "image": str(n), **({"given": given} if given else {})} for n in numbers]

    for seed in range(5):
        own = cases(range(20), "training") + cases(range(20, 24), "validation") + cases(range(24, 30), "test")
        domains = {"own": own, "other": cases(range(200))}
        split_cases(domains, seed)
        sides = {case["sha256"]: case["split"] for case in own}
        assert [case["split"] for case in own] == [case["given"] for case in own]
        assert all(case["split"] == sides[case["sha256"]] for case in domains["other"] if case["sha256"] in sides)
        assert {case["split"] for case in domains["other"][30:]} == set(SPLITS)
    with pytest.raises(InputError, match="gives an image as test that another gives as training"):
        split_cases({"a": cases([1, 2], "training") + cases([3], "test"), "b": cases([1], "test")})


# Cases that are listed twice


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


def test_one_image_with_two_labels_is_refused_by_name(liver_folder, tmp_path):
    folder = liver_folder(cases=4)
    cases = entries(folder)
    other = nibabel.load(folder / cases[0]["label"])
    voxels = np.asarray(other.dataobj).copy()
    voxels[voxels > 0] = 2
    nibabel.save(nibabel.Nifti1Image(voxels, other.affine, other.header), folder / "labelsTr" / "other.nii.gz")
    relist(folder, training=[*cases, {"image": cases[0]["image"], "label": "labelsTr/other.nii.gz"}])
    with pytest.raises(InputError, match="liver_0.nii.gz': one image with two different labels .*other.nii.gz"):
        PREPARE["lits"](folder, tmp_path / "out")


def test_one_image_on_two_sides_of_a_given_split_is_refused_by_name(liver_folder, tmp_path):
    folder = liver_folder(cases=4)
    cases = entries(folder)
    relist(folder, training=cases, test=cases[:1])
    with pytest.raises(InputError, match="liver_0.nii.gz': one image, listed as training and as test"):
        PREPARE["lits"](folder, tmp_path / "out")


# Classes and phantoms


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
