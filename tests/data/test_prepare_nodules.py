"""``prepare nodules`` and the run that prepares itself: classes, patients, folds, sizes, mistakes in one sentence."""

from __future__ import annotations

import json
import logging
from collections import Counter

import nibabel
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from prepared_folders import domain_of

from med3d_ext.data.leakage import leakage
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.tools.cli import main
from med3d_ext.tools.layouts.prepare import prepare_lits, prepare_nodules

MANY = tuple(1 + number % 5 for number in range(40))


def test_the_datalist_is_a_decathlons_with_the_class_as_label(nodule_folder, tmp_path):
    source = nodule_folder(ratings=MANY)
    prepare_nodules(source, tmp_path / "out")
    splits = {
        split: load_decathlon_datalist(str(tmp_path / "out" / "datalist.json"), False, split)
        for split in ("training", "validation", "test")
    }
    assert {split: Counter(item["label"] for item in items) for split, items in splits.items()} == {
        "training": {0: 20, 1: 13},
        "validation": {0: 2, 1: 1},
        "test": {0: 2, 1: 2},
    }
    assert all(type(item["label"]) is int for items in splits.values() for item in items)
    assert read_json(tmp_path / "out" / "datalist.json")["labels"] == {"0": "benign", "1": "malignant"}


def test_nodules_of_one_patient_are_on_one_side(nodule_folder, tmp_path):
    source = nodule_folder(ratings=MANY, scans=tuple(number // 4 for number in range(40)))
    domain = domain_of(prepare_nodules(source, tmp_path / "out"))
    sides: dict[str, set[str]] = {}
    for case in domain["cases"]:
        sides.setdefault(case["subject"], set()).add(case["split"])
    assert len(sides) == 10 and all(len(splits) == 1 for splits in sides.values())


def test_over_all_folds_each_nodule_is_tested_once_and_the_classes_stay_balanced(nodule_folder, tmp_path):
    source = nodule_folder(ratings=MANY)
    tested: list[str] = []
    for fold in range(5):
        domain = domain_of(prepare_nodules(source, tmp_path / "out", folds=5, fold=fold))
        test = [case for case in domain["cases"] if case["split"] == "test"]
        assert Counter(case["label"] for case in test) in ({0: 5, 1: 3}, {0: 4, 1: 4})
        assert (domain["folds"], domain["fold"]) == (5, fold)
        tested += [case["image"] for case in test]
    assert len(tested) == len(set(tested)) == 40


def test_the_list_holds_digests_and_the_size_of_each_nodule(nodule_folder, tmp_path):
    source = nodule_folder(ratings=(1, 5, 2, 4))
    (source / "masks" / "n2.nii.gz").unlink()
    domain = domain_of(prepare_nodules(source, tmp_path / "out"))
    assert domain["classes"] == {"0": "benign", "1": "malignant"}
    assert len({case["sha256"] for case in domain["cases"]}) == 4
    voxels = [case["labels"].get("1") for case in domain["cases"]]
    assert voxels[2] is None and all(count > 30 for number, count in enumerate(voxels) if number != 2)
    assert domain["cases"][2]["label_sha256"] is None and domain["cases"][2]["target_box"] is None
    assert [domain["cases"][number]["label"] for number in (0, 2)] == [0, 0]


def test_the_cube_is_32_mm_or_what_the_images_hold(nodule_folder, nifti, tmp_path):
    source = nodule_folder(ratings=(1, 5))
    assert domain_of(prepare_nodules(source, tmp_path / "a"))["cube_mm"] == 14.0
    assert domain_of(prepare_nodules(source, tmp_path / "b", cube_mm=10))["cube_mm"] == 10.0
    for number in range(2):
        for part in ("images", "masks"):
            nifti(
                source / part / f"n{number}.nii.gz",
                np.full((20, 20, 20), number + 1, np.uint8),
                np.diag([3.0, 3, 3, 1]),
            )
    assert domain_of(prepare_nodules(source, tmp_path / "c"))["cube_mm"] == 32.0
    with pytest.raises(InputError, match="cube_mm must be above 0, got -1"):
        prepare_nodules(source, tmp_path / "d", cube_mm=-1)


def test_a_second_preparation_reads_no_voxel_and_writes_the_same(nodule_folder, tmp_path, monkeypatch):
    source = nodule_folder()
    (source / "masks" / "n2.nii.gz").unlink()
    prepare_nodules(source, tmp_path / "out")
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("datalist.json", "facts.json")}
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", None)
    prepare_nodules(source, tmp_path / "out")
    assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}


def test_a_run_prepares_itself_and_its_items_are_found_from_anywhere(nodule_folder, tmp_path):
    source = nodule_folder()
    data = PreparedData("nodules", str(source), str(tmp_path / "run"), options={"folds": 3, "fold": 1})
    assert len(data.test) == 4 and data.domain["fold"] == 1
    item = data.training[0]
    assert item["image"].startswith(str(source)) and item["mask"].startswith(str(source)) and item["label"] in (0, 1)
    assert item["domain"] == "nodules" and len(item["sha256"]) == 64


def test_a_list_beside_the_data_moves_with_it(nodule_folder, tmp_path):
    source = nodule_folder()
    prepare_nodules(source, source)
    moved = source.rename(tmp_path / "moved")
    items = PreparedData("nodules", str(moved), str(tmp_path / "run")).training
    assert all(item["image"].startswith(str(moved / "images")) for item in items)
    assert all(item["mask"].startswith(str(moved / "masks")) for item in items)


def test_a_prepared_folder_is_prepared_again_for_another_fold_and_left_as_it_is(nodule_folder, tmp_path, monkeypatch):
    prepared = prepare_nodules(nodule_folder(), tmp_path / "out", folds=3, fold=2)
    before = {path: path.read_bytes() for path in prepared.iterdir()}
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", None)  # known voxels are not read again

    def run(**options):
        return PreparedData("nodules", str(prepared), str(tmp_path / "run"), options=options)

    own = {item["image"] for item in run(folds=3, fold=2).test}
    for accepted in ({}, {"folds": None, "fold": 0, "cube_mm": None, "ties": None, "skip_bad": False}):
        assert run(**accepted).folder == prepared and {item["image"] for item in run(**accepted).test} == own
    tested = [item["image"] for fold in range(3) for item in run(folds=3, fold=fold).test]
    assert len(tested) == len(set(tested)) == 12
    assert run(cube_mm=9).domain["cube_mm"] == 9.0
    assert {path: path.read_bytes() for path in before} == before


def test_a_prepared_folder_that_moved_with_its_data_is_prepared_again_for_another_fold(nodule_folder, tmp_path):
    source = nodule_folder()
    prepare_nodules(source, source)
    (source / "nodules.csv").unlink()  # as LIDC's folder, which has none of its own
    moved = source.rename(tmp_path / "moved")
    data = PreparedData("nodules", str(moved), str(tmp_path / "run"), options={"folds": 3, "fold": 1})
    assert len(data.test) == 4 and data.folder == tmp_path / "run" / "prepared" / "moved"
    assert all(item["image"].startswith(str(moved)) for item in data.training)


def test_tied_nodules_that_a_prepared_folder_left_out_are_not_pretended(nodule_folder, tmp_path):
    source = nodule_folder(ratings=(1, 5, "3;4", 2, 4, 5))
    prepare_nodules(source, tmp_path / "out")
    options = {"ties": "malignant"}
    with pytest.raises(InputError, match="lacks the 1 tied nodules .* give the source for --ties malignant"):
        PreparedData("nodules", str(tmp_path / "out"), str(tmp_path / "run"), options=options)
    prepare_nodules(source, source)  # beside the table they are not lost
    data = PreparedData("nodules", str(source), str(tmp_path / "run"), options=options)
    assert sum(case["label"] for case in data.cases["nodules"]) == 4


def test_a_window_that_a_prepared_folder_was_not_made_with_is_refused(liver_folder, tmp_path):
    prepare_lits(liver_folder(), tmp_path / "out")
    options = {"hu_window": (-100, 100)}
    with pytest.raises(InputError, match=r"was prepared with hu_window .* the run asks for \(-100, 100\)"):
        PreparedData("lits", str(tmp_path / "out"), str(tmp_path / "run"), options=options)


def test_the_summary_line_counts_classes_ties_and_skipped_nodules(nodule_folder, tmp_path, caplog):
    source = nodule_folder(ratings=(1, 5, "3;4", 2, 4, 5))
    (source / "images" / "n5.nii.gz").unlink()
    with pytest.raises(InputError, match="nodule 'n5'"):
        prepare_nodules(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.INFO):
        prepare_nodules(source, tmp_path / "out", skip_bad=True)
    (line,) = [record.message for record in caplog.records if record.message.startswith("prepared")]
    assert "2 benign, 2 malignant; 1 left out (median rating between 3 and 4); 1 faulty left out" in line
    assert sum("left out: nodule 'n5'" in record.message for record in caplog.records) == 1
    assert {key: domain_of(tmp_path / "out")[key] for key in ("tied", "skipped")} == {"tied": 1, "skipped": 1}


@pytest.mark.parametrize(
    ("part", "voxels", "message"),
    [
        ("images", np.full((14, 14, 14), np.nan, np.float32), "NaN"),
        ("images", np.zeros((14, 14, 14, 2), np.uint8), "4D"),
        ("masks", np.zeros((14, 14, 14), np.uint8), "no foreground"),
        ("masks", np.ones((14, 14, 13), np.uint8), "14x14x13"),
    ],
)
def test_a_file_that_no_network_should_see_is_named(part, voxels, message, nodule_folder, nifti, tmp_path):
    source = nodule_folder()
    path = nifti(source / part / "n4.nii.gz", voxels)
    with pytest.raises(InputError, match=message) as error:
        prepare_nodules(source, tmp_path / "out")
    assert str(path) in str(error.value) and not (tmp_path / "out").exists()


def test_the_verb_prepares_and_its_list_can_be_checked_for_leakage(nodule_folder, tmp_path, capsys):
    source = nodule_folder()
    out = str(tmp_path / "out")
    assert main(["prepare", "nodules", str(source), "--output", out, "--folds", "3", "--fold", "1"]) == 0
    assert domain_of(tmp_path / "out")["fold"] == 1
    assert main(["prepare", "lits", str(source), "--folds", "3"]) == 2
    assert "--folds is not an option of lits" in capsys.readouterr().err
    card = {"cases": {"training": json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert "the weights have seen 0" in leakage(str(tmp_path / "card.json"), str(tmp_path / "out" / "datalist.json"))


def test_real_nodules_are_read_as_they_are(real_data, tmp_path):
    domain = domain_of(prepare_nodules(real_data / "nodules", tmp_path / "out", folds=5))
    assert Counter(case["label"] for case in domain["cases"]) == {0: 53, 1: 55}
    assert domain["cube_mm"] == 32.0 and domain["intensity_observed"] == [0.0, 255.0]


def test_a_mask_that_is_elsewhere_is_refused_and_one_in_another_order_of_voxels_counts_alike(nodule_folder, tmp_path):
    source = nodule_folder()
    for number, order in ((0, [[2, -1], [0, 1], [1, -1]]), (1, [[0, -1], [1, -1], [2, 1]])):
        mask = nibabel.load(source / "masks" / f"n{number}.nii.gz")
        voxels = np.asarray(mask.dataobj)
        nibabel.save(nibabel.Nifti1Image(voxels, mask.affine).as_reoriented(np.array(order)), mask.get_filename())
    prepare_nodules(source, tmp_path / "out")
    for number in (2, 3):
        mask = nibabel.load(source / "masks" / f"n{number}.nii.gz")
        voxels, affine = np.asarray(mask.dataobj), mask.affine + np.pad([[3.0]], ((0, 3), (3, 0)))
        nibabel.save(nibabel.Nifti1Image(voxels, affine), mask.get_filename())
    with pytest.raises(InputError) as error:
        prepare_nodules(source, tmp_path / "other")
    message = str(error.value)
    assert all(f"n{number}.nii.gz' is 3 mm off its image" in message for number in (2, 3))
    prepare_nodules(source, tmp_path / "other", skip_bad=True)
    domain = domain_of(tmp_path / "other")
    assert len(domain["cases"]) == 10 and domain["skipped"] == 2
