"""Lung data in every layout: names become sides, masks one label map; strata, folds, classes and moves of `prepare`."""

from __future__ import annotations

import logging
import os

import nibabel
import numpy as np
import pytest
from lung_folders import LPS, chest, right_and_left, save, write_decathlon, write_totalsegmentator, write_visceral
from monai.data import load_decathlon_datalist
from prepared_folders import domain_of

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import FaultyCases, InputError
from med3d_ext.io.files import read_json, write_json
from med3d_ext.tools.layouts import lung
from med3d_ext.tools.layouts.lung import EITHER, LEFT, RIGHT, lung_classes, merge_masks, side_of
from med3d_ext.tools.layouts.prepare import prepare, prepare_lits, prepare_lung
from med3d_ext.tools.layouts.table import read_source

WRITERS = {"decathlon": write_decathlon, "visceral": write_visceral, "totalsegmentator": write_totalsegmentator}


# Classes

SIDES = {"lung": EITHER, "Lungs": EITHER, "right lung": RIGHT, "Lung_L": LEFT, "lung_middle_lobe_right": RIGHT}
SIDES |= {"left upper lobe": LEFT, "liver": 0, "right kidney": 0, "left lobe of the liver": 0, "cancer": 0}


@pytest.mark.parametrize("name", SIDES)
def test_a_name_tells_the_lung_and_its_side(name):
    assert side_of(name) == SIDES[name]


def test_two_classes_merge_the_lungs_and_three_number_them_right_then_left():
    names = {0: "background", 1: "left lung", 2: "heart", 4: "right lung"}
    assert lung_classes(names, 2, "x") == ({"0": "background", "1": "lung"}, {"0": 0, "1": 1, "2": 0, "4": 1})
    classes, label_map = lung_classes(names, 3, "x")
    assert classes == {"0": "background", "1": "right lung", "2": "left lung"}
    assert label_map == {"0": 0, "1": 2, "2": 0, "4": 1}


@pytest.mark.parametrize(
    ("names", "num_classes", "words"),
    [
        (["lung"], 3, ["num_classes 3", "'here'", "has lung", "use 2"]),
        (["right lung"], 3, ["num_classes 3", "right lung"]),
        (["lung", "left lung", "right lung"], 3, ["num_classes 3"]),
        (["cancer"], 2, ["'here'", "no class that is a lung", "cancer"]),
    ],
)
def test_classes_that_cannot_be_are_refused_in_a_sentence(names, num_classes, words):
    with pytest.raises(InputError) as error:
        lung_classes(dict(enumerate(["background", *names])), num_classes, "here")
    assert all(word in str(error.value) for word in words)


# Masks


@pytest.fixture
def files(tmp_path):
    """An image and the masks of its lungs, and where the label map goes."""
    image, masks = chest(0)
    parts = {str(save(tmp_path / f"{side}.nii.gz", mask * 255)): 1 + (side == "left") for side, mask in masks.items()}
    return str(save(tmp_path / "image.nii.gz", image)), parts, tmp_path / "labels" / "case.nii.gz"


def merged(image, parts, label) -> np.ndarray:
    assert merge_masks(image, parts, label) is True
    found = nibabel.load(label)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, LPS)
    return np.asarray(found.dataobj)


def test_masks_become_one_label_map_on_the_images_grid_and_are_read_once(files, monkeypatch):
    image, parts, label = files
    save(label, np.zeros((3, 3, 3), np.uint8))  # a file of another origin is replaced
    np.testing.assert_array_equal(merged(*files), right_and_left())
    label.write_bytes(b"torn")
    np.testing.assert_array_equal(merged(*files), right_and_left())
    with monkeypatch.context() as patch:
        patch.setattr(lung, "load_volume", None)
        assert merge_masks(*files) is True
    first, second = map(os.path.basename, parts)
    empty = np.zeros(nibabel.load(image).shape, np.uint8)
    save(label.parent.parent / first, empty)
    assert set(np.unique(merged(*files))) == {0, 2}
    save(label.parent.parent / second, empty)
    assert [merge_masks(*files) for _ in range(2)] == [False, False]


def test_a_mask_in_another_order_of_voxels_is_where_its_header_says(files):
    for part in files[1]:
        nibabel.save(nibabel.load(part).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), part)
    np.testing.assert_array_equal(merged(*files), right_and_left())


UP = LPS.copy()
UP[2, 3] += 60


@pytest.mark.parametrize(
    ("change", "affine", "words"),
    [
        (lambda mask: mask[:-1], LPS, "is 11x10x8"),
        (lambda mask: mask[::-1].copy(), np.diag([2.0, -2.0, 3.0, 1.0]), "off its image"),
        (lambda mask: mask, UP, "is 60 mm off its image"),
        (lambda mask: mask, LPS @ np.diag([0.5, 0.5, 0.5, 1]), "has voxels of 1 x 1 x 1.5 mm"),
        (lambda mask: (mask > 0) * np.float32(0.3), LPS, "holds the value 0.3"),
    ],
)
def test_a_mask_that_is_elsewhere_or_no_mask_is_named_and_nothing_is_written(change, affine, words, files):
    image, parts, label = files
    part = next(iter(parts))
    save(label.parent.parent / os.path.basename(part), change(np.asarray(nibabel.load(part).dataobj)), affine)
    with pytest.raises(InputError) as error:
        merge_masks(image, parts, label)
    assert part in str(error.value) and words in str(error.value)
    assert not label.exists()


# Layouts


def read_lung(folder, output) -> list[dict]:
    return read_source(folder, "lung", output).cases


def label_of(case) -> np.ndarray:
    return np.asarray(nibabel.load(case["label"]).dataobj)


def test_visceral_gives_four_modalities_and_merges_the_two_lungs(tmp_path):
    root = write_visceral(tmp_path / "visceral", patients=2)
    save(root / "segmentations" / "10000100_1_CT_wb_1302_9.nii.gz", chest(0)[1]["right"] * 0)  # a second annotator
    cases = read_lung(root, tmp_path / "out")
    assert [case["modality"] for case in cases[::2]] == ["CT_wb", "CTce_ThAb", "MRT1_wb", "MRT1cefs_Ab"]
    assert cases[0]["image"].endswith("volumes/CT_wb/10000100_1_CT_wb.nii.gz")
    assert cases[0]["label"] == str(tmp_path / "out" / "labels" / "10000100_1_CT_wb.nii.gz")
    assert cases[0]["subject"] == "10000100"
    for case in cases:
        np.testing.assert_array_equal(label_of(case), right_and_left())


def test_names_of_viscerals_other_corpora_are_read(tmp_path):
    """The silver corpus leaves the modality out of a mask's name; unpacked files have no .gz; one folder holds all."""
    image, masks = chest(0)
    save(tmp_path / "v" / "10000101_1_CTce_ThAb.nii", image)
    save(tmp_path / "v" / "10000101_1_1302_fused.nii", masks["right"])
    save(tmp_path / "v" / "10000101_1_1326.nii", masks["left"])
    (case,) = read_lung(tmp_path / "v", tmp_path / "out")
    assert case["modality"] == "CTce_ThAb"
    np.testing.assert_array_equal(label_of(case), right_and_left())


@pytest.mark.parametrize(("scan", "modality"), [("ct", "CT"), ("mri", "MR")])
def test_totalsegmentators_lobes_or_lungs_become_two_lungs(scan, modality, tmp_path):
    cases = read_lung(write_totalsegmentator(tmp_path / "ts", 2, scan), tmp_path / "out")
    assert [case["modality"] for case in cases] == [modality] * 2
    assert cases[1]["label"].endswith("labels/s0001.nii.gz")
    for case in cases:
        np.testing.assert_array_equal(label_of(case), right_and_left())


def test_cases_without_lungs_or_masks_are_left_out_by_name(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    root = write_visceral(tmp_path / "v", 3, ("CT_wb",))
    (root / "segmentations" / "10000101_1_CT_wb_1326_8.nii.gz").unlink()
    (root / "volumes" / "CT_wb" / "10000102_1_CT_wb.nii.gz").unlink()
    assert len(read_lung(root, tmp_path / "out")) == 1
    assert "1 cases have no masks of both lungs (10000101_1_CT_wb.nii.gz)" in caplog.text
    assert "1 cases have masks and no volume (10000102_1)" in caplog.text
    root = write_totalsegmentator(tmp_path / "ts", 3)
    for path in (root / "s0000" / "segmentations").iterdir():
        save(path, np.zeros_like(right_and_left()))
    for path in (root / "s0002" / "segmentations").glob("lung*"):
        path.unlink()
    (case,) = read_lung(root, tmp_path / "out2")
    assert "s0001" in case["image"]
    assert "1 cases show no lung (s0000)" in caplog.text and "1 cases have no masks of the lungs (s0002)" in caplog.text


def no_masks(root):
    for path in (root / "segmentations").glob("*_13*"):
        path.unlink()


def empty_masks(root):
    for path in root.rglob("segmentations/*"):
        save(path, np.zeros_like(right_and_left()))


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("visceral", no_masks, "no volume with masks of both lungs"),
        ("totalsegmentator", empty_masks, "has no case that shows a lung"),
        (
            "totalsegmentator",
            lambda root: (root / "s0001/segmentations/lung_middle_lobe_right.nii.gz").unlink(),
            "s0001/segmentations/lung_middle_lobe_right.nii.gz' does not exist",
        ),
    ],
)
def test_a_set_without_lungs_or_a_lobe_is_refused(layout, change, message, tmp_path):
    root = WRITERS[layout](tmp_path / "data", 2)
    change(root)
    with pytest.raises(InputError, match=message):
        read_lung(root, tmp_path / "out")


@pytest.mark.parametrize("write", [write_visceral, write_totalsegmentator])
def test_label_maps_never_go_into_the_data(write, tmp_path):
    root = write(tmp_path / "data")
    for output in (root, root / "prepared"):
        with pytest.raises(InputError, match="output must be a folder outside of"):
            read_lung(root, output)


# prepare


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


def test_a_folder_of_one_modality_states_it_once(tmp_path):
    folder = write_decathlon(tmp_path / "Lung", ("CT", "CT"))
    content = read_json(folder / "dataset.json")
    entries = [{key: entry[key] for key in ("image", "label")} for entry in content["training"]]
    write_json(folder / "dataset.json", {**content, "training": entries, "modality": {"0": "CT"}})
    prepare_lung(folder, tmp_path / "out")
    assert [case["modality"] for case in domain_of(tmp_path / "out")["cases"]] == ["CT", "CT"]


def test_a_tenth_of_every_modality_is_test(tmp_path):
    """The paper has 72 training and 8 test volumes, all four modalities in both."""
    prepare_lung(write_visceral(tmp_path / "v", patients=10), tmp_path / "out")
    table: dict[str, list[int]] = {}
    for case in domain_of(tmp_path / "out")["cases"]:
        table.setdefault(case["modality"], [0, 0])[case["split"] == "test"] += 1
    assert table == dict.fromkeys(("CT_wb", "CTce_ThAb", "MRT1_wb", "MRT1cefs_Ab"), [9, 1])


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
        assert data.domain["options"] == {"seed": 0, **options}
        tested |= {os.path.basename(item["label"]) for item in data.test}
    assert len(tested) == 8
    three = PreparedData("lung", str(moved), str(tmp_path / "three"), options={"num_classes": 3})
    assert three.domain["classes"] == {"0": "background", "1": "right lung", "2": "left lung"}
    assert three.domain["label_map"] == {"0": 0, "1": 1, "2": 2}
    assert {path: path.read_bytes() for path in before} == before
    options = {"num_classes": 2, "folds": None, "fold": 0}
    assert PreparedData("lung", str(moved), str(tmp_path / "plain"), options=options).folder == moved
    assert not (tmp_path / "plain").exists()


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


@pytest.mark.parametrize("layout", ["visceral", "totalsegmentator"])
def test_a_damaged_mask_is_named_and_left_out_where_that_is_asked(layout, tmp_path):
    root = WRITERS[layout](tmp_path / "data")
    paths = sorted(root.rglob("*1302_8.nii.gz" if layout == "visceral" else "*lung_lower_lobe_left*"))
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FaultyCases) as error:
        prepare_lung(root, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert all(str(path) in line and "cannot be read" in line for path, line in zip(paths, lines[:2]))
    assert len(lines) == 3 and lines[2].startswith(f"2 of {len(paths)} cases are faulty")
    assert not [name for name in ("datalist.json", "facts.json") if (tmp_path / "out" / name).exists()]
    prepare_lung(root, tmp_path / "out", skip_bad=True)
    assert len(domain_of(tmp_path / "out")["cases"]) == len(paths) - 2


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
    prepared = prepare_lits(write_decathlon(tmp_path / "Lung", lungs=1), tmp_path / "lits")
    with pytest.raises(InputError, match="was not prepared for the lung bundle"):
        prepare_lung(prepared, tmp_path / "out")


def test_the_real_chests_are_split_by_modality(real_data, tmp_path):
    prepare_lung(real_data / "lung", tmp_path / "out")
    cases = domain_of(tmp_path / "out")["cases"]
    assert sorted(case["modality"] for case in cases if case["split"] == "test") == ["CT", "MR"]
    assert len(cases) == 8
