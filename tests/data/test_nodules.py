"""Rated nodules become cases of two classes; what is faulty is named, or counted where the user says so."""

from __future__ import annotations

import json

import pytest
from prepared_folders import domain_of

from med3d_ext.errors import Faults, InputError
from med3d_ext.tools.layouts.nodules import median_rating, rated_class, with_classes
from med3d_ext.tools.layouts.prepare import prepare_nodules
from med3d_ext.tools.layouts.table import read_source


def read_nodules(folder, ties: str = "exclude", faults: Faults | None = None) -> list[dict]:
    return with_classes(read_source(folder, "nodules", faults=faults), ties).cases


def labels(folder, **options) -> dict[str, int]:
    cases = read_nodules(folder, **options)
    return {case["image"].rpartition("/")[2].removesuffix(".nii.gz"): case["label"] for case in cases}


def add_line(folder, line: str) -> None:
    with open(folder / "nodules.csv", "a") as file:
        file.write(line + "\n")


# Ratings


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4), ("3;4;5", 4), ("2 3", 2.5), ("3/4", 3.5), ([1, 2, 5], 2), (3.0, 3), ("1|1|4|5", 2.5)],
)
def test_the_rating_is_the_median_of_the_readers(text, expected):
    assert median_rating(text, "nodule") == expected


@pytest.mark.parametrize("bad", ["0", "6", "4;9", "nan", "high", "-1", [7], "3,5"])
def test_a_rating_outside_1_to_5_is_refused_with_its_place(bad):
    with pytest.raises(InputError, match="nodule 'a' has the malignancy .* ratings must be from 1 to 5"):
        median_rating(bad, "nodule 'a'")


@pytest.mark.parametrize("missing", ["", "  ", None, []])
def test_a_missing_rating_is_refused_with_its_place(missing):
    with pytest.raises(InputError, match="nodule 'a' has no rating of malignancy"):
        median_rating(missing, "nodule 'a'")


@pytest.mark.parametrize(("median", "expected"), [(1, 0), (2.5, 0), (3, 0), (4, 1), (4.5, 1), (5, 1)])
def test_up_to_3_is_benign_and_from_4_on_malignant(median, expected):
    assert rated_class(median) == expected


def test_a_median_between_the_classes_is_left_out_or_goes_where_the_user_says():
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
    first = found[0]
    assert first["malignancy"] == 3.0
    assert (first["image"], first["mask"]) == tuple(str(folder / part / "n0.nii.gz") for part in ("images", "masks"))
    assert labels(folder, ties="malignant") == {"n0": 0, "n1": 1, "n2": 1, "n3": 1}


def test_a_patient_wins_over_the_scan_and_masks_may_be_missing(nodule_folder):
    folder = nodule_folder(ratings=(1, 5))
    (folder / "masks" / "n0.nii.gz").unlink()
    table = "nodule,scan,patient,malignancy,readers\nn0.nii.gz,1,LIDC-1,1,4\nn1,2,,5,3\n"
    (folder / "nodules.csv").write_text("\ufeff" + table, encoding="utf-8")  # a byte order mark, as spreadsheets write
    first, second = read_nodules(folder)
    assert (first["subject"], second["subject"]) == ("LIDC-1", "2")
    assert "mask" not in first and second["mask"].endswith("n1.nii.gz")


FAULTS = {
    "n12,12,": "nodule 'n12' .line 14 of .*nodules.csv'. has no",
    "n0,0,": "nodule 'n0' .line 14 of .*nodules.csv'. has no rating",
    "n0,0,6": "ratings must be from 1 to 5",
    "lost,1,3": "nodule 'lost' .line 14.*has no image '.*images/lost.nii.gz'",
    "": None,
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_faulty_row_is_refused_or_skipped_and_counted(line, nodule_folder):
    folder = nodule_folder()
    add_line(folder, line)
    if FAULTS[line] is None:
        assert len(read_nodules(folder)) == 12  # an empty line is no row
        return
    with pytest.raises(InputError, match=FAULTS[line]):
        read_nodules(folder)
    faults = Faults(skip_bad=True)
    assert len(read_nodules(folder, faults=faults)) == 12
    assert len(faults.sentences) == 1 and "line 14" in faults.sentences[0]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_damaged_file_is_left_out_only_if_the_user_says_so(part, nodule_folder, tmp_path):
    folder = nodule_folder()
    path = folder / part / "n3.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=f"{path}' cannot be read"):
        prepare_nodules(folder, tmp_path / "out")
    prepare_nodules(folder, tmp_path / "out", skip_bad=True)
    domain = domain_of(tmp_path / "out")
    assert (len(domain["cases"]), domain["skipped"]) == (11, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("nodule,scan\nn0,1\n", "has no column 'malignancy'"),
        ("name,malignancy\nn0,1\n", "has no column 'nodule'"),
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


def test_a_folder_of_another_kind_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nowhere' is not a folder"):
        read_nodules(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is empty"):
        read_nodules(tmp_path)
    (tmp_path / "other.txt").touch()
    with pytest.raises(InputError, match="holds neither nodules.csv nor dataset.json"):
        read_nodules(tmp_path)
    with pytest.raises(InputError, match="ties must be one of exclude, benign, malignant, got 'drop'"):
        prepare_nodules(tmp_path, tmp_path / "out", ties="drop")


# dataset.json


def decathlon(folder, entries, **more):
    (folder / "nodules.csv").unlink(missing_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"training": entries, **more}))
    return folder


def entry(number: int, **more) -> dict:
    return {"image": f"./images/n{number}.nii.gz", **more}


def test_a_decathlon_folder_states_malignancy_or_a_class(nodule_folder):
    folder = nodule_folder(ratings=(1, 5, 2, 4))
    mask = "./masks/n2.nii.gz"
    entries = [entry(0, malignancy=2), entry(1, malignancy=[4, 5, 3]), entry(2, label=0, mask=mask, patient="p1")]
    decathlon(folder, [*entries, entry(3, label="./masks/n3.nii.gz", malignancy="4;5")])
    assert labels(folder) == {"n0": 0, "n1": 1, "n2": 0, "n3": 1}
    cases = read_nodules(folder)
    assert [("mask" in case) for case in cases] == [False, False, True, True]
    assert cases[2]["subject"] == "p1" and "malignancy" not in cases[2]


def test_the_two_classes_may_have_other_names(nodule_folder):
    folder = nodule_folder(ratings=(1, 5))
    decathlon(folder, [entry(0, label=0), entry(1, label=1)], labels={"0": "solid", "1": "part-solid"})
    assert read_source(folder, "nodules").classes == {0: "solid", 1: "part-solid"}
    assert [case["stratum"] for case in read_nodules(folder)] == ["solid", "part-solid"]


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
