"""``prepare lung`` and runs that prepare themselves: strata, folds, classes, moves, one sentence for bad input."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
from lung_folders import save, write_decathlon, write_totalsegmentator, write_visceral
from monai.data import load_decathlon_datalist
from prepared_folders import domain_of

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import FaultyCases, InputError
from med3d_ext.tools.layouts.prepare import prepare, prepare_lung

WRITERS = {"decathlon": write_decathlon, "visceral": write_visceral, "totalsegmentator": write_totalsegmentator}


def names(items) -> set[str]:
    return {os.path.basename(item["label"]) for item in items}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_becomes_a_decathlon_datalist_with_modalities(layout, tmp_path):
    source = WRITERS[layout](tmp_path / layout)
    before = sorted(source.rglob("*"))
    prepare_lung(source, tmp_path / "out")
    assert sorted(source.rglob("*")) == before
    items = [
        item
        for split in ("training", "validation", "test")
        for item in load_decathlon_datalist(str(tmp_path / "out" / "datalist.json"), True, split)
    ]
    assert all(os.path.isfile(item["image"]) and os.path.isfile(item["label"]) for item in items)
    assert all(item["modality"] and item["domain"] == layout for item in items)
    domain = domain_of(tmp_path / "out")
    assert domain["classes"] == {"0": "background", "1": "lung"}
    assert domain["label_map"] == {"0": 0, "1": 1, "2": 1}
    assert len(domain["cases"]) == len(items)


def test_a_tenth_of_every_modality_is_test(tmp_path):
    """The paper has 72 training and 8 test volumes, all four modalities in both."""
    prepare_lung(write_visceral(tmp_path / "v", patients=10), tmp_path / "out")
    cases = domain_of(tmp_path / "out")["cases"]
    table = {case["modality"]: [0, 0] for case in cases}
    for case in cases:
        table[case["modality"]][case["split"] == "test"] += 1
    assert table == dict.fromkeys(("CT_wb", "CTce_ThAb", "MRT1_wb", "MRT1cefs_Ab"), [9, 1])


def test_a_patient_is_on_one_side(tmp_path):
    root = write_visceral(tmp_path / "v", 6, ("CT_wb", "MRT1_wb"))
    for path in sorted(root.rglob("100002*_2_*")):  # the MR patients are the CT patients
        path.rename(path.with_name("100001" + path.name[6:]))
    prepare_lung(root, tmp_path / "out")
    sides = {}
    for case in domain_of(tmp_path / "out")["cases"]:
        assert sides.setdefault(case["subject"], case["split"]) == case["split"]
    assert set(sides.values()) >= {"training", "test"}


def test_leave_one_out_tests_every_case_once(tmp_path):
    root = write_decathlon(tmp_path / "Lung")
    tested = []
    for fold in range(4):
        options = {"num_classes": 2, "folds": 4, "fold": fold}
        data = PreparedData("lung", str(root), str(tmp_path / f"run{fold}"), options=options)
        assert len(data.test) == 1 and len(data.training) == 3
        assert data.domain["options"] == {"seed": 0, **options}
        tested += names(data.test)
    assert len(set(tested)) == 4


def test_a_prepared_folder_is_split_anew_for_a_fold_and_left_as_it_is(tmp_path):
    prepared = prepare_lung(write_visceral(tmp_path / "v", 2), tmp_path / "out")
    moved = prepared.rename(tmp_path / "moved")  # label maps move with it
    before = {path: path.read_bytes() for path in moved.iterdir() if path.is_file()}
    tested = set()
    for fold in range(4):
        options = {"num_classes": 2, "folds": 4, "fold": fold}
        data = PreparedData("lung", str(moved), str(tmp_path / f"run{fold}"), options=options)
        assert all(item["label"].startswith(str(moved)) and os.path.isfile(item["label"]) for item in data.test)
        assert {item["modality"] for item in data.training} == {"CT_wb", "CTce_ThAb", "MRT1_wb", "MRT1cefs_Ab"}
        tested |= names(data.test)
    assert len(tested) == 8
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(InputError, match="fold 2 needs the number of parts"):
        PreparedData("lung", str(moved), str(tmp_path / "alone"), options={"num_classes": 2, "folds": None, "fold": 2})
    plain = PreparedData(
        "lung", str(moved), str(tmp_path / "plain"), options={"num_classes": 2, "folds": None, "fold": 0}
    )
    assert plain.folder == moved and not (tmp_path / "plain").exists()


def test_a_prepared_folder_of_two_classes_gives_three_where_a_run_asks_for_them(tmp_path):
    prepared = prepare_lung(write_totalsegmentator(tmp_path / "ts"), tmp_path / "out")
    data = PreparedData("lung", str(prepared), str(tmp_path / "run"), options={"num_classes": 3})
    assert data.domain["classes"] == {"0": "background", "1": "right lung", "2": "left lung"}
    assert data.domain["label_map"] == {"0": 0, "1": 1, "2": 2}
    assert domain_of(prepared)["classes"] == {"0": "background", "1": "lung"}


def test_a_second_fold_reads_no_voxel(tmp_path, monkeypatch):
    root = write_visceral(tmp_path / "v", 1)
    options = {"num_classes": 2, "folds": 4}
    PreparedData("lung", str(root), str(tmp_path / "run"), options={**options, "fold": 0})
    for module in ("data.fingerprint.read_voxels", "tools.layouts.lung.load_volume"):
        monkeypatch.setattr(f"med3d_ext.{module}", None)
    PreparedData("lung", str(root), str(tmp_path / "run"), options={**options, "fold": 1})


def test_the_verb_takes_the_options_of_its_kind_alone(tmp_path):
    root = write_decathlon(tmp_path / "Lung")
    said = prepare("lung", str(root), output=str(tmp_path / "out"), num_classes=3, folds=2, fold=1)
    assert str(tmp_path / "out") in said
    assert domain_of(tmp_path / "out")["options"] == {"seed": 0, "num_classes": 3, "folds": 2, "fold": 1}
    with pytest.raises(InputError, match="--folds is not an option of lits"):
        prepare("lits", str(root), folds=2)
    with pytest.raises(InputError, match="--hu_window is not an option of lung"):
        prepare("lung", str(root), hu_window="-100,100")


def without_lung(root):
    path = root / "labelsTr" / "mr_1.nii.gz"
    return save(path, np.zeros(nibabel.load(path).shape, np.uint8))


def truncated(root):
    path = root / "imagesTr" / "ct_0.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(("damage", "word"), [(without_lung, "no foreground"), (truncated, "cannot be read")])
def test_bad_files_are_named_and_nothing_is_written(damage, word, tmp_path):
    root = write_decathlon(tmp_path / "Lung")
    path = damage(root)
    with pytest.raises(InputError, match=word) as error:
        prepare_lung(root, tmp_path / "out")
    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["visceral", "totalsegmentator"])
def test_a_damaged_mask_is_named_and_no_list_is_written(layout, tmp_path):
    root = WRITERS[layout](tmp_path / "data")
    path = sorted(root.rglob("*1302_8.nii.gz" if layout == "visceral" else "*lung_lower_lobe_left*"))[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot be read") as error:
        prepare_lung(root, tmp_path / "out")
    assert str(path) in str(error.value)
    assert not [name for name in ("datalist.json", "facts.json") if (tmp_path / "out" / name).exists()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "num_classes 3 needs right and left lung"),
        ({"num_classes": 1}, "num_classes must be 2"),
        ({"folds": 9}, "folds must be from 2 to the 4 subjects of 'Lung', got 9"),
        ({"folds": 4, "fold": 4}, "fold must be from 0 to 3, got 4"),
        ({"folds": "four"}, "folds must be a whole number, got 'four'"),
        ({"fold": 2}, "fold 2 needs the number of parts; add --folds"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message, tmp_path):
    root = write_decathlon(tmp_path / "Lung", lungs=1)
    with pytest.raises(InputError, match=message):
        prepare_lung(root, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_prepared_for_another_task_is_refused(tmp_path):
    from med3d_ext.tools.layouts.prepare import prepare_lits

    root = write_decathlon(tmp_path / "Lung", lungs=1)
    prepared = prepare_lits(root, tmp_path / "lits")
    with pytest.raises(InputError, match="was not prepared for the lung bundle"):
        prepare_lung(prepared, tmp_path / "out")


def test_the_real_chests_are_split_by_modality(real_data, tmp_path):
    prepare_lung(real_data / "lung", tmp_path / "out")
    cases = domain_of(tmp_path / "out")["cases"]
    assert sorted(case["modality"] for case in cases if case["split"] == "test") == ["CT", "MR"]
    assert len(cases) == 8
    with pytest.raises(InputError, match="has lung; use 2"):
        prepare_lung(real_data / "lung", tmp_path / "three", num_classes=3)


def test_every_faulty_case_is_named_and_left_out_where_that_is_asked(tmp_path, caplog):
    root = write_totalsegmentator(tmp_path / "data", 6)
    (root / "s0000" / "segmentations" / "lung_lower_lobe_left.nii.gz").unlink()
    part = root / "s0001" / "segmentations" / "lung_lower_lobe_left.nii.gz"
    part.write_bytes(part.read_bytes()[:60])
    mask = nibabel.load(root / "s0002" / "segmentations" / "lung_upper_lobe_left.nii.gz")
    voxels = np.asarray(mask.dataobj)
    moved = mask.affine + np.pad([[60.0]], ((0, 3), (3, 0)))
    nibabel.save(nibabel.Nifti1Image(voxels, moved), mask.get_filename())
    with pytest.raises(FaultyCases) as error:
        prepare_lung(root, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert [name in line for name, line in zip(("s0000", "s0001", "s0002", "3 of 6 cases"), lines)] == [True] * 4
    assert not (tmp_path / "out" / "datalist.json").exists()
    prepare_lung(root, tmp_path / "out", skip_bad=True)
    assert all(f"left out: {line}" in caplog.messages for line in lines[:-1])
    facts = domain_of(tmp_path / "out")
    assert sorted(case["image"].split("/")[-2] for case in facts["cases"]) == ["s0003", "s0004", "s0005"]
