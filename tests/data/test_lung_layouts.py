"""Every layout gives the same cases; what is incomplete is named."""

from __future__ import annotations

import json
import logging

import nibabel
import numpy as np
import pytest
from lung_folders import chest, right_and_left, save, write_decathlon, write_totalsegmentator, write_visceral

from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.table import read_source


def read_lung(folder, output):
    return read_source(folder, "lung", output)


def label_of(case) -> np.ndarray:
    return np.asarray(nibabel.load(case["label"]).dataobj)


def modalities(source) -> dict[str, int]:
    found = [case["modality"] for case in source.cases]
    return {modality: found.count(modality) for modality in found}


def test_a_decathlon_folder_states_the_modality_of_each_case(tmp_path):
    source = read_lung(write_decathlon(tmp_path / "Lung"), tmp_path / "out")
    assert modalities(source) == {"CT": 2, "MR": 2}
    assert source.classes == {0: "background", 1: "right lung", 2: "left lung"}
    assert not (tmp_path / "out").exists()


def test_a_decathlon_folder_of_one_modality_states_it_once(tmp_path):
    folder = write_decathlon(tmp_path / "Lung", ("CT", "CT"))
    content = json.loads((folder / "dataset.json").read_text())
    for entry in content["training"]:
        del entry["modality"]
    (folder / "dataset.json").write_text(json.dumps({**content, "modality": {"0": "CT"}}))
    assert modalities(read_lung(folder, tmp_path / "out")) == {"CT": 2}


def test_visceral_gives_four_modalities_and_merges_the_two_lungs(tmp_path):
    source = read_lung(write_visceral(tmp_path / "visceral", patients=2), tmp_path / "out")
    assert modalities(source) == {"CT_wb": 2, "CTce_ThAb": 2, "MRT1_wb": 2, "MRT1cefs_Ab": 2}
    assert source.cases[0]["image"].endswith("volumes/CT_wb/10000100_1_CT_wb.nii.gz")
    assert source.cases[0]["label"] == str(tmp_path / "out" / "labels" / "10000100_1_CT_wb.nii.gz")
    assert source.cases[0]["subject"] == "10000100"
    for case in source.cases:
        np.testing.assert_array_equal(label_of(case), right_and_left())


def test_names_of_viscerals_other_corpora_are_read(tmp_path):
    """The silver corpus leaves the modality out of a mask's name; unpacked files have no .gz; one folder holds all."""
    image, masks = chest(0)
    save(tmp_path / "v" / "10000101_1_CTce_ThAb.nii", image)
    save(tmp_path / "v" / "10000101_1_1302_fused.nii", masks["right"])
    save(tmp_path / "v" / "10000101_1_1326.nii", masks["left"])
    (case,) = read_lung(tmp_path / "v", tmp_path / "out").cases
    assert case["modality"] == "CTce_ThAb"
    np.testing.assert_array_equal(label_of(case), right_and_left())


def test_of_two_annotators_the_first_is_taken(tmp_path):
    root = write_visceral(tmp_path / "v", 1, ("CT_wb",))
    _, masks = chest(0)
    save(root / "segmentations" / "10000100_1_CT_wb_1302_9.nii.gz", masks["right"] * 0)
    (case,) = read_lung(root, tmp_path / "out").cases
    np.testing.assert_array_equal(label_of(case), right_and_left())


def test_a_visceral_volume_without_both_masks_is_left_out_by_name(tmp_path, caplog):
    root = write_visceral(tmp_path / "v", 3, ("CT_wb",))
    (root / "segmentations" / "10000101_1_CT_wb_1326_8.nii.gz").unlink()
    (root / "volumes" / "CT_wb" / "10000102_1_CT_wb.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(read_lung(root, tmp_path / "out").cases) == 1
    said = [record.message for record in caplog.records]
    assert any("1 cases have no masks of both lungs (10000101_1_CT_wb.nii.gz)" in message for message in said), said
    assert any("1 cases have masks and no volume (10000102_1)" in message for message in said), said


def test_visceral_volumes_alone_are_refused(tmp_path):
    root = write_visceral(tmp_path / "v", 2, ("CT_wb",))
    for path in (root / "segmentations").glob("*_13*"):
        path.unlink()
    with pytest.raises(InputError, match="no volume with masks of both lungs"):
        read_lung(root, tmp_path / "out")


@pytest.mark.parametrize(("scan", "modality"), [("ct", "CT"), ("mri", "MR")])
def test_totalsegmentators_lobes_or_lungs_become_two_lungs(scan, modality, tmp_path):
    source = read_lung(write_totalsegmentator(tmp_path / "ts", 2, scan), tmp_path / "out")
    assert modalities(source) == {modality: 2}
    assert source.cases[1]["label"].endswith("labels/s0001.nii.gz")
    for case in source.cases:
        np.testing.assert_array_equal(label_of(case), right_and_left())


def test_totalsegmentator_cases_that_show_no_lung_are_left_out_and_counted(tmp_path, caplog):
    root = write_totalsegmentator(tmp_path / "ts", 3)
    for path in (root / "s0000" / "segmentations").iterdir():
        save(path, np.zeros_like(right_and_left()))
    for path in (root / "s0002" / "segmentations").glob("lung*"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        (case,) = read_lung(root, tmp_path / "out").cases
    assert "s0001" in case["image"]
    said = " ".join(record.message for record in caplog.records)
    assert "1 cases show no lung (s0000)" in said and "1 cases have no masks of the lungs (s0002)" in said


def test_totalsegmentator_cases_none_of_which_shows_a_lung_are_refused(tmp_path):
    root = write_totalsegmentator(tmp_path / "ts", 1)
    for path in (root / "s0000" / "segmentations").iterdir():
        save(path, np.zeros_like(right_and_left()))
    with pytest.raises(InputError, match="has no case that shows a lung"):
        read_lung(root, tmp_path / "out")


def test_a_missing_lobe_is_refused_by_name(tmp_path):
    root = write_totalsegmentator(tmp_path / "ts", 2)
    path = root / "s0001" / "segmentations" / "lung_middle_lobe_right.nii.gz"
    path.unlink()
    with pytest.raises(InputError, match=f"'{path}' does not exist"):
        read_lung(root, tmp_path / "out")


@pytest.mark.parametrize("write", [write_visceral, write_totalsegmentator])
def test_label_maps_never_go_into_the_data(write, tmp_path):
    root = write(tmp_path / "data")
    before = sorted(root.rglob("*"))
    for output in (root, root / "prepared"):
        with pytest.raises(InputError, match="output must be a folder outside of"):
            read_lung(root, output)
    read_lung(root, tmp_path / "out")
    assert sorted(root.rglob("*")) == before


def test_foreign_folders_are_refused_by_name(tmp_path):
    (tmp_path / "foreign" / "sub").mkdir(parents=True)
    save(tmp_path / "foreign" / "sub" / "ct.nii.gz", chest(0)[0])
    for folder, word in (("nowhere", "is not a folder"), ("foreign", "holds neither dataset.json nor")):
        with pytest.raises(InputError, match=f"dataset_dir '{tmp_path / folder}' {word}"):
            read_lung(tmp_path / folder, tmp_path / "out")
