"""Scans without a target: empty labels, known by their hashes, and only in training."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.data import list_data_collate

from med3d_ext.data.datalists import scans_without_target
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.transforms import LoadVolumed

HEAD = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)


@pytest.fixture
def folder(nifti, tmp_path):
    for name in ("head", "pelvis"):
        nifti(tmp_path / "negatives" / f"{name}.nii.gz", HEAD, np.diag([1.0, -2, 3, 1]))
    return tmp_path / "negatives"


def test_without_a_folder_there_are_none():
    assert scans_without_target(None, "liver") == []


def test_each_image_is_an_item_with_its_hash_and_no_label(folder):
    items = scans_without_target(str(folder), "liver")
    assert [item["image"] for item in items] == [str(folder / "head.nii.gz"), str(folder / "pelvis.nii.gz")]
    for item in items:
        content = (folder / item["image"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        assert item["label"] is None and item["domain"] == "liver"


def test_their_keys_are_those_of_prepared_items_so_that_both_make_a_batch(folder, liver_folder, tmp_path):
    data = PreparedData("lits", str(liver_folder()), str(tmp_path / "run"))
    items = [*data.training, *scans_without_target(str(folder), "Task03_Liver")]
    assert len({tuple(sorted(item)) for item in items}) == 1
    list_data_collate([{**item, "image": torch.zeros(1), "label": torch.zeros(1)} for item in items])


def test_a_folder_without_images_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"negatives '{tmp_path}' holds no image"):
        scans_without_target(str(tmp_path), "liver")


def test_a_dicom_series_is_refused_by_name(tmp_path):
    write_series(tmp_path / "scan", np.zeros((4, 4, 3), np.int16))
    with pytest.raises(InputError, match=f"'{tmp_path / 'scan'}' is a DICOM series; convert it"):
        scans_without_target(str(tmp_path), "liver")


def test_a_label_that_is_none_is_empty_on_the_images_grid(folder):
    (item, _) = scans_without_target(str(folder), "liver")
    loaded = LoadVolumed(require_foreground=True)(item)
    image, label = loaded["image"], loaded["label"]
    assert torch.equal(label.as_tensor(), torch.zeros(1, *HEAD.shape))
    torch.testing.assert_close(label.affine, image.affine)
    np.testing.assert_array_equal(image[0].numpy(), HEAD)
