"""Rated nodules become cases of two classes and a list split by patient; what is faulty is named, or counted."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from lidc_files import Chest, drawn
from monai.data import load_decathlon_datalist
from prepared_folders import domain_of

from med3d_ext.data.leakage import leakage
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import read_json
from med3d_ext.tools.cli import main
from med3d_ext.tools.layouts.nodules import median_rating, rated_class, with_classes
from med3d_ext.tools.layouts.prepare import CUBE_MM, prepare_lits, prepare_nodules
from med3d_ext.tools.layouts.table import read_source

MANY = tuple(1 + number % 5 for number in range(40))


def read_nodules(folder, ties: str = "exclude", faults: Faults | None = None) -> list[dict]:
    return with_classes(read_source(folder, "nodules", faults=faults), ties).cases


def labels(folder, **options) -> dict[str, int]:
    cases = read_nodules(folder, **options)
    return {case["image"].rpartition("/")[2].removesuffix(".nii.gz"): case["label"] for case in cases}


# Ratings


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4), ("3;4;5", 4), ("2 3", 2.5), ("3/4", 3.5), ([1, 2, 5], 2), (3.0, 3), ("1|1|4|5", 2.5)],
)
def test_the_rating_is_the_median_of_the_readers(text, expected):
    assert median_rating(text, "nodule") == expected


@pytest.mark.parametrize("bad", ["0", "6", "4;9", "nan", "high", "-1", [7], "3,5", "", "  ", None, []])
def test_a_rating_outside_1_to_5_or_none_is_refused_with_its_place(bad):
    words = "the malignancy .* ratings must be from 1 to 5" if str(bad or "").strip() else "no rating of malignancy"
    with pytest.raises(InputError, match=f"nodule 'a' has {words}"):
        median_rating(bad, "nodule 'a'")


def test_up_to_3_is_benign_from_4_on_malignant_and_between_them_what_the_user_says():
    assert [rated_class(median) for median in (1, 2.5, 3, 3.5, 4, 4.5, 5)] == [0, 0, 0, None, 1, 1, 1]
    assert [rated_class(3.5, ties) for ties in ("exclude", "benign", "malignant")] == [None, 0, 1]


# nodules.csv


def test_the_table_gives_class_files_and_patient(nodule_folder):
    folder = nodule_folder(ratings=(3, 4, "3;4", "3;4;4"), scans=(7, 7, 8, 9))
    found = read_nodules(folder)
    assert [(case["label"], case["stratum"], case["subject"]) for case in found] == [
        (0, "benign", "7"),
        (1, "malignant", "7"),
        (1, "malignant", "9"),
    ]
    files = tuple(str(folder / part / "n0.nii.gz") for part in ("images", "masks"))
    assert (found[0]["malignancy"], found[0]["image"], found[0]["mask"]) == (3.0, *files)
    assert labels(folder, ties="malignant") == {"n0": 0, "n1": 1, "n2": 1, "n3": 1}


def test_a_patient_wins_over_the_scan_and_masks_may_be_missing(nodule_folder):
    folder = nodule_folder(ratings=(1, 5))
    (folder / "masks" / "n0.nii.gz").unlink()
    table = "nodule,scan,patient,malignancy,readers\nn0.nii.gz,1,LIDC-1,1,4\nn1,2,,5,3\n"
    (folder / "nodules.csv").write_text("\ufeff" + table, encoding="utf-8")  # a byte order mark, as spreadsheets write
    first, second = read_nodules(folder)
    assert (first["subject"], second["subject"]) == ("LIDC-1", "2")
    assert "mask" not in first and second["mask"].endswith("n1.nii.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n12,12,", "nodule 'n12' .line 14 of .*nodules.csv'. has no"),
        ("n0,0,", "nodule 'n0' .line 14 of .*nodules.csv'. has no rating"),
        ("n0,0,6", "ratings must be from 1 to 5"),
        ("lost,1,3", "nodule 'lost' .line 14.*has no image '.*images/lost.nii.gz'"),
    ],
)
def test_a_faulty_row_is_refused_or_left_out_and_counted(line, message, nodule_folder):
    folder = nodule_folder()
    with open(folder / "nodules.csv", "a") as file:
        file.write(f"{line}\n\n")  # an empty line is no row
    with pytest.raises(InputError, match=message):
        read_nodules(folder)
    faults = Faults(skip_bad=True)
    assert len(read_nodules(folder, faults=faults)) == 12
    assert len(faults.sentences) == 1 and "line 14" in faults.sentences[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("nodule,scan\nn0,1\n", "has no column 'malignancy'"),
        ("", "has no column 'nodule'"),
        ("nodule,malignancy\n", "has no rows"),
        ("nodule,malignancy\nn0,1\nn0,1\nn1,5\n", "n0.nii.gz' is listed 2 times"),
        ("nodule,malignancy\nn0,1\nn1,2\n", "holds no malignant nodule"),
        ("nodule,malignancy\nn0,3;4\nn1,5\n", "holds no benign nodule"),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(table, message, nodule_folder, tmp_path):
    folder = nodule_folder(ratings=(1, 5))
    (folder / "nodules.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        prepare_nodules(folder, tmp_path / "out")


def test_a_folder_of_another_kind_and_impossible_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere' is not a folder"):
        read_nodules(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is empty"):
        read_nodules(tmp_path)
    (tmp_path / "other.txt").touch()
    with pytest.raises(InputError, match="holds neither nodules.csv nor dataset.json"):
        read_nodules(tmp_path)
    with pytest.raises(InputError, match="ties must be one of exclude, benign, malignant, got 'drop'"):
        prepare_nodules(tmp_path, tmp_path / "out", ties="drop")
    with pytest.raises(InputError, match="cube_mm must be above 0, got -1"):
        prepare_nodules(tmp_path, tmp_path / "out", cube_mm=-1)


# dataset.json


def decathlon(folder, entries, **more):
    (folder / "nodules.csv").unlink(missing_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"training": entries, **more}))
    return folder


def entry(number: int, **more) -> dict:
    return {"image": f"./images/n{number}.nii.gz", **more}


def test_a_decathlon_folder_states_malignancy_or_a_class_perhaps_of_other_names(nodule_folder):
    folder = nodule_folder(ratings=(1, 5, 2, 4))
    mask = "./masks/n2.nii.gz"
    entries = [entry(0, malignancy=2), entry(1, malignancy=[4, 5, 3]), entry(2, label=0, mask=mask, patient="p1")]
    entries.append(entry(3, label="./masks/n3.nii.gz", malignancy="4;5"))
    decathlon(folder, entries, labels={"0": "solid", "1": "part-solid"})
    assert labels(folder) == {"n0": 0, "n1": 1, "n2": 0, "n3": 1}
    cases = read_nodules(folder)
    assert [("mask" in case) for case in cases] == [False, False, True, True]
    assert cases[2]["subject"] == "p1" and "malignancy" not in cases[2]
    assert [case["stratum"] for case in cases] == ["solid", "part-solid", "solid", "part-solid"]


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        ([entry(0)], {}, "entry 0 under 'training' .* has neither 'malignancy' nor a class"),
        ([entry(0, label=2)], {}, "entry 0 .* has neither"),
        ([entry(0, label=True)], {}, "entry 0 .* has neither"),
        ([{"label": 1}], {}, "entry 0 .* has no image"),
        (["./images/n0.nii.gz"], {}, "entry 0 .* has no image"),
        ([entry(7, label=1)], {}, "n7.nii.gz' .* does not exist"),
        ([], {}, "lists no cases under 'training'"),
        ([entry(0, label=0)], {"labels": {"0": "a", "1": "b", "2": "c"}}, "must name two classes"),
        ([entry(0, label=0)], {"labels": ["a", "b"]}, "must name two classes"),
    ],
)
def test_an_incomplete_list_is_refused_with_the_entry(entries, more, message, nodule_folder):
    folder = decathlon(nodule_folder(ratings=(1, 5)), entries, **more)
    with pytest.raises(InputError, match=message):
        read_nodules(folder)


# prepare


def test_the_datalist_is_a_decathlons_with_the_class_as_label(nodule_folder, tmp_path):
    source = nodule_folder(ratings=MANY)
    prepare_nodules(source, tmp_path / "out")
    path = str(tmp_path / "out" / "datalist.json")
    lists = {split: load_decathlon_datalist(path, False, split) for split in ("training", "validation", "test")}
    assert {split: Counter(item["label"] for item in items) for split, items in lists.items()} == {
        "training": {0: 20, 1: 13},
        "validation": {0: 2, 1: 1},
        "test": {0: 2, 1: 2},
    }
    assert all(type(item["label"]) is int for items in lists.values() for item in items)
    assert read_json(path)["labels"] == {"0": "benign", "1": "malignant"}
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


def test_the_cube_is_32_mm_or_what_the_images_hold(nodule_folder, nifti, tmp_path):
    source = nodule_folder(ratings=(1, 5))
    assert domain_of(prepare_nodules(source, tmp_path / "a"))["cube_mm"] == 14.0
    assert domain_of(prepare_nodules(source, tmp_path / "b", cube_mm=10))["cube_mm"] == 10.0
    for number in range(2):
        voxels = np.full((20, 20, 20), number + 1, np.uint8)
        for part in ("images", "masks"):
            nifti(source / part / f"n{number}.nii.gz", voxels, np.diag([3.0, 3, 3, 1]))
    assert domain_of(prepare_nodules(source, tmp_path / "c"))["cube_mm"] == 32.0


def test_a_prepared_folder_is_prepared_again_for_another_fold_and_left_as_it_is(nodule_folder, tmp_path, monkeypatch):
    source = nodule_folder()
    prepare_nodules(source, source, folds=3, fold=2)
    (source / "nodules.csv").unlink()  # as LIDC's folder, which has none of its own
    prepared = source.rename(tmp_path / "moved")
    before = {path: path.read_bytes() for path in prepared.iterdir() if path.is_file()}
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", None)  # known voxels are not read again

    def run(**options):
        return PreparedData("nodules", str(prepared), str(tmp_path / "run"), options=options)

    own = {item["image"] for item in run(folds=3, fold=2).test}
    for accepted in ({}, {"folds": None, "fold": 0, "cube_mm": None, "ties": None, "skip_bad": False}):
        assert run(**accepted).folder == prepared and {item["image"] for item in run(**accepted).test} == own
    tested = [item["image"] for fold in range(3) for item in run(folds=3, fold=fold).test]
    assert len(tested) == len(set(tested)) == 12 and all(image.startswith(str(prepared)) for image in tested)
    assert run(cube_mm=9).domain["cube_mm"] == 9.0
    assert {path: path.read_bytes() for path in before} == before


def test_what_a_prepared_folder_has_lost_or_was_not_made_with_is_refused(nodule_folder, liver_folder, tmp_path):
    source = nodule_folder(ratings=(1, 5, "3;4", 2, 4, 5))
    prepare_nodules(source, tmp_path / "out")
    options = {"ties": "malignant"}
    with pytest.raises(InputError, match="lacks the 1 tied nodules .* give the source for --ties malignant"):
        PreparedData("nodules", str(tmp_path / "out"), str(tmp_path / "run"), options=options)
    prepare_nodules(source, source)  # next to the table they are not lost
    data = PreparedData("nodules", str(source), str(tmp_path / "run"), options=options)
    assert sum(case["label"] for case in data.cases["nodules"]) == 4
    prepare_lits(liver_folder(), tmp_path / "liver")
    with pytest.raises(InputError, match=r"was prepared with hu_window .* the run asks for \(-100, 100\)"):
        PreparedData("lits", str(tmp_path / "liver"), str(tmp_path / "run"), options={"hu_window": (-100, 100)})


def test_faulty_and_tied_nodules_are_left_out_and_counted(nodule_folder, tmp_path, caplog):
    source = nodule_folder(ratings=(1, 5, "3;4", 2, 4, 5, 1))
    (source / "images" / "n5.nii.gz").unlink()
    damaged = source / "masks" / "n6.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(InputError, match="nodule 'n5'"):
        prepare_nodules(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.INFO):
        prepare_nodules(source, tmp_path / "out", skip_bad=True)
    (line,) = [record.message for record in caplog.records if record.message.startswith("prepared")]
    assert "2 benign, 2 malignant; 1 left out (median rating between 3 and 4); 2 faulty left out" in line
    assert all(f"left out: {start}" in caplog.text for start in ("nodule 'n5'", f"'{damaged}'"))
    assert {key: domain_of(tmp_path / "out")[key] for key in ("tied", "skipped")} == {"tied": 1, "skipped": 2}


def test_the_verb_prepares_and_its_list_can_be_checked_for_leakage(nodule_folder, tmp_path):
    out = tmp_path / "out"
    assert main(["prepare", "nodules", str(nodule_folder()), "--output", str(out), "--folds", "3", "--fold", "1"]) == 0
    assert domain_of(out)["fold"] == 1
    card = {"cases": {"training": json.loads((out / "datalist.json").read_text())["training"]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert "the weights have seen 0" in leakage(str(tmp_path / "card.json"), str(out / "datalist.json"))


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
    assert all(f"n{number}.nii.gz' is 3 mm off its image" in str(error.value) for number in (2, 3))


# LIDC-IDRI as it is published

RATINGS = ((1, 2), (5, 4), (2, 2), (5, 5), (3, 4))  # the last lies between the classes


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    for number, ratings in enumerate(RATINGS, start=1):
        chest = Chest(uid=f"1.2.{number}", patient=f"LIDC-IDRI-000{number}")
        ball = chest.ball(chest.middle(), 6 + number)  # one image in several patients is refused
        folder = chest.write(tmp_path / "src" / chest.patient / "series", ball)
        chest.write_xml(folder / "069.xml", *([drawn(ball, rating)] for rating in ratings))
    return tmp_path / "src"


def test_one_command_makes_a_datalist_of_two_classes_by_patient_outside_of_the_data(patients, tmp_path, capsys):
    before, output = sorted(patients.rglob("*")), tmp_path / "out"
    assert main(["prepare", "lidc", str(patients), "--output", str(output)]) == 0
    assert f"are in {output}" in capsys.readouterr().out
    data = PreparedData("nodules", str(output), str(tmp_path / "run"))
    assert (len(data.training), sorted(item["label"] for item in data.test)) == (2, [0, 1])
    for item in data.training + data.test:
        assert Path(item["image"]).parent == output / "images" and Path(item["mask"]).parent == output / "masks"
    domain = domain_of(output)
    assert {case["subject"] for case in domain["cases"]} == {f"LIDC-IDRI-000{n}" for n in (1, 2, 3, 4)}
    assert (domain["tied"], domain["spacing_median"], domain["cube_mm"]) == (1, [1, 1, 1], CUBE_MM)
    own = PreparedData("nodules", str(patients), str(tmp_path / "run2"))
    assert len(own.training) + len(own.test) == 4 and sorted(patients.rglob("*")) == before


def test_bad_scans_end_the_command_and_skip_bad_leaves_them_out(patients, tmp_path, capsys):
    output = tmp_path / "out"
    next((patients / "LIDC-IDRI-0005").rglob("9.dcm")).unlink()
    command = ["prepare", "lidc", str(patients), "--output", str(output)]
    assert main(command) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "misses 1 slice" in message and message.endswith("or leave out this by --skip_bad.")
    assert not (output / "nodules.csv").exists() and not (output / "datalist.json").exists()
    assert main([*command, "--skip_bad"]) == 0
    assert read_json(output / "lidc.json")["left_out"] == 1
