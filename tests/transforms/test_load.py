"""Loading one volume, and the checks that all bundles share."""

from __future__ import annotations

import tracemalloc

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage

from med3d_ext.errors import InputError
from med3d_ext.transforms.load import LoadVolumed, load_volume, stated_spacing, usable_spacing

VOXELS = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
NAN = float("nan")


def assert_one_sentence(error: pytest.ExceptionInfo, *words: object) -> None:
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert str(word) in message, message


def test_a_volume_is_channel_first_float32_with_its_affine(nifti, tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    volume = load_volume(nifti(tmp_path / "a.nii.gz", VOXELS, affine))
    assert volume.shape == (1, 6, 7, 8) and volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    item = LoadVolumed(allow_missing_keys=True)({"image": tmp_path / "a.nii.gz"})  # inference has no label
    assert set(item) == {"image"} and torch.equal(item["image"], volume)
    np.testing.assert_allclose(volume.affine.numpy(), affine)
    assert volume.meta["filename_or_obj"] == str(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_scaled_voxels_are_nibabels_to_the_bit(kind, nifti, tmp_path):
    stored = (np.random.default_rng(0).random((6, 7, 8)) * 255).astype(kind)
    path = nifti(tmp_path / "a.nii", stored, scaling=(400 / 255, -125.3))
    assert np.abs(load_volume(path)[0].numpy() - (stored * (400 / 255) - 125.3)).max() < 1e-3
    np.testing.assert_array_equal(load_volume(path)[0].numpy(), nibabel.load(path).get_fdata().astype(np.float32))


def test_reading_a_scaled_volume_takes_no_copy_in_float64(nifti, tmp_path):
    """A CT of 512 x 512 x 800 would not fit into 4 GB."""
    stored = np.zeros((64, 64, 400), np.int16)
    path = nifti(tmp_path / "a.nii.gz", stored, scaling=(0.5, -100))
    load_volume(path)  # what is imported on the first call does not count
    tracemalloc.start()
    load_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * stored.size * 4


def test_a_volume_in_memory_is_taken_as_its_file_is(nifti, tmp_path):
    """MONAI Deploy reads images itself and hands them over without a channel axis."""
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    path = nifti(tmp_path / "a.nii.gz", VOXELS, affine)
    from_file = LoadVolumed("image")({"image": path})["image"]
    read = LoadImage(image_only=True, dtype=np.float64)(path)
    from_memory = LoadVolumed("image")({"image": read})["image"]
    assert from_memory.dtype == from_file.dtype and torch.equal(from_memory, from_file)
    for name in ("affine", "original_affine", "spatial_shape"):
        np.testing.assert_array_equal(from_memory.meta[name], from_file.meta[name])


@pytest.mark.parametrize(
    ("voxels", "affine", "words"),
    [
        (VOXELS[0], np.eye(4), "not a 3D volume"),
        (np.where(VOXELS > 2, NAN, VOXELS), np.eye(4), "NaN"),
        (VOXELS, np.diag([0.0, 1, 1, 1]), "no usable voxel spacing"),
    ],
)
def test_a_bad_volume_in_memory_is_refused_in_one_sentence(voxels, affine, words):
    with pytest.raises(InputError) as error:
        LoadVolumed("image")({"image": MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(affine))})
    assert_one_sentence(error, "image in memory", words)


def test_the_channel_of_a_4d_file_comes_from_the_transform_or_the_item(nifti, tmp_path):
    path = nifti(tmp_path / "a.nii.gz", np.stack([VOXELS, VOXELS + 10], axis=-1))
    load = LoadVolumed("image", channel=0)
    np.testing.assert_array_equal(load({"image": path})["image"][0].numpy(), VOXELS)
    np.testing.assert_array_equal(load({"image": path, "channel": 1})["image"][0].numpy(), VOXELS + 10)


@pytest.mark.parametrize(
    ("voxels", "channel", "words"),
    [
        (VOXELS[..., 0], None, ["not a 3D volume", "6x7"]),
        (VOXELS[..., :1], None, ["not a 3D volume"]),
        (np.stack([VOXELS] * 2, axis=-1), None, ["not a 3D volume", "6x7x8x2"]),
        (np.stack([VOXELS] * 2, axis=-1), 2, ["has 2 channels", "channel 2"]),
        (np.where(VOXELS > 2, NAN, VOXELS), None, ["NaN"]),
        (np.where(VOXELS > 2, np.inf, VOXELS), None, ["infinite"]),
    ],
)
def test_volumes_that_no_network_should_see_are_refused_by_name(nifti, tmp_path, voxels, channel, words):
    path = nifti(tmp_path / "scan.nii.gz", voxels)
    with pytest.raises(InputError) as error:
        load_volume(path, channel)
    assert_one_sentence(error, path, *words)


def test_missing_empty_truncated_and_foreign_files_are_refused_by_name(nifti, tmp_path):
    whole = nifti(tmp_path / "whole.nii.gz", VOXELS).read_bytes()
    contents = {
        "torn.nii.gz": whole[: len(whole) // 2],
        "empty.nii.gz": b"",
        "text.nii": b"hello",
        "text.mha": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            load_volume(tmp_path / name)
        assert_one_sentence(error, tmp_path / name, "cannot be read")
    with pytest.raises(InputError) as error:
        load_volume(tmp_path / "nowhere.nii")
    assert_one_sentence(error, "nowhere.nii", "does not exist")


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (0.0, 0.0, 0.0), (NAN, 1.0, 1.0)])
def test_a_header_without_spacing_takes_the_default_or_is_refused(nifti, tmp_path, spacing):
    path = nifti(tmp_path / "scan.nii.gz", VOXELS, pixdim=spacing)
    with pytest.raises(InputError) as error:
        LoadVolumed("image")({"image": path})
    assert_one_sentence(error, path, "no usable voxel spacing")
    load = LoadVolumed("image", default_spacing=(1, 2, 3))
    np.testing.assert_array_equal(load({"image": path})["image"].affine.numpy(), np.diag([1, 2, 3, 1]))
    usable = nifti(tmp_path / "usable.nii.gz", VOXELS, np.diag([1.0, 2, 4, 1]))
    np.testing.assert_array_equal(load({"image": usable})["image"].affine.numpy(), np.diag([1, 2, 4, 1]))
    zeros = nifti(tmp_path / "zeros.nii.gz", VOXELS, np.diag([0.0, 0, 0, 1]))
    assert not usable_spacing(stated_spacing(zeros, np.diag([0.0, 0, 0, 1])))


def test_the_label_takes_the_geometry_of_its_image_and_whole_numbers(nifti, tmp_path):
    image = nifti(tmp_path / "image.nii", VOXELS, np.diag([-1.0, 2, 3, 1]))
    stored = (VOXELS > 0).astype(np.float32) * 2 + 1e-4  # as scaled files come
    label = nifti(tmp_path / "label.nii", stored, np.eye(4))
    item = LoadVolumed()({"image": image, "label": label, "domain": "x"})
    np.testing.assert_array_equal(item["label"].affine.numpy(), item["image"].affine.numpy())
    assert set(item["label"].unique().tolist()) == {0.0, 2.0}
    assert item["domain"] == "x"


def test_a_label_without_foreground_is_refused_only_where_that_is_asked(nifti, tmp_path):
    files = {"image": nifti(tmp_path / "image.nii", VOXELS), "label": nifti(tmp_path / "label.nii", VOXELS * 0)}
    assert LoadVolumed()(files)["label"].sum() == 0
    with pytest.raises(InputError) as error:
        LoadVolumed(require_foreground=True)(files)
    assert_one_sentence(error, files["label"], "no foreground")


@pytest.mark.parametrize("value", [0.3, 0.5, 1.5, -1.0, 1.002, 254.9])
def test_a_label_value_that_is_no_whole_number_of_at_least_0_is_refused_by_name(nifti, tmp_path, value):
    stored = np.zeros(VOXELS.shape, np.float32)
    stored[2, 2, 2] = value
    files = {"image": nifti(tmp_path / "image.nii", VOXELS), "label": nifti(tmp_path / "label.nii", stored)}
    with pytest.raises(InputError) as error:
        LoadVolumed()(files)
    assert_one_sentence(error, files["label"], f"{value:.4g}")
