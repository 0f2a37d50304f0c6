"""Names become sides, masks become one label map, and unchanged masks are not read again."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
from lung_folders import LPS, chest, right_and_left, save

from med3d_ext.errors import InputError
from med3d_ext.tools.layouts import lung as lung_labels
from med3d_ext.tools.layouts.lung import EITHER, LEFT, RIGHT, lung_classes, merge_masks, side_of


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lung", EITHER),
        ("Lungs", EITHER),
        ("right lung", RIGHT),
        ("Lung_L", LEFT),
        ("lung_middle_lobe_right", RIGHT),
        ("left upper lobe", LEFT),
        ("liver", 0),
        ("right kidney", 0),
        ("left lobe of the liver", 0),
        ("cancer", 0),
        ("background", 0),
    ],
)
def test_a_name_tells_the_lung_and_its_side(name, side):
    assert side_of(name) == side


def test_two_classes_merge_the_lungs_and_three_number_them_right_then_left():
    names = {0: "background", 1: "left lung", 2: "heart", 4: "right lung"}
    assert lung_classes(names, 2, "x") == ({"0": "background", "1": "lung"}, {"0": 0, "1": 1, "2": 0, "4": 1})
    classes, label_map = lung_classes(names, 3, "x")
    assert classes == {"0": "background", "1": "right lung", "2": "left lung"}
    assert label_map == {"0": 0, "1": 2, "2": 0, "4": 1}


@pytest.mark.parametrize(
    ("names", "num_classes", "words"),
    [
        ({0: "background", 1: "lung"}, 3, ["num_classes 3", "'here'", "has lung", "use 2"]),
        ({0: "background", 1: "right lung"}, 3, ["num_classes 3", "right lung"]),
        ({0: "background", 1: "lung", 2: "left lung", 3: "right lung"}, 3, ["num_classes 3"]),
        ({0: "background", 1: "cancer"}, 2, ["'here'", "no class that is a lung", "cancer"]),
    ],
)
def test_classes_that_cannot_be_are_refused_in_a_sentence(names, num_classes, words):
    with pytest.raises(InputError) as error:
        lung_classes(names, num_classes, "here")
    message = str(error.value)
    assert all(word in message for word in words) and message.endswith("."), message


@pytest.fixture
def files(tmp_path):
    """An image and the masks of its lungs, and where the label map goes."""
    image, masks = chest(0)
    parts = {str(save(tmp_path / f"{side}.nii.gz", mask * 255)): 1 + (side == "left") for side, mask in masks.items()}
    return str(save(tmp_path / "image.nii.gz", image)), parts, tmp_path / "labels" / "case.nii.gz"


def test_masks_become_one_label_map_on_the_images_grid(files):
    image, parts, label = files
    assert merge_masks(image, parts, label) is True
    merged = nibabel.load(label)
    np.testing.assert_array_equal(np.asarray(merged.dataobj), right_and_left())
    assert merged.get_data_dtype() == np.uint8
    np.testing.assert_allclose(merged.affine, LPS)


def test_unchanged_masks_are_not_read_again_and_changed_ones_are(files, monkeypatch):
    image, parts, label = files
    merge_masks(image, parts, label)
    before = label.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(lung_labels, "load_volume", None)
        assert merge_masks(image, parts, label) is True
    first = next(iter(parts))
    empty = np.zeros(nibabel.load(first).shape, np.uint8)
    save(label.parent.parent / os.path.basename(first), empty)
    merge_masks(image, parts, label)
    assert label.read_bytes() != before
    assert set(np.unique(np.asarray(nibabel.load(label).dataobj))) == {0, 2}


def test_masks_without_a_voxel_say_so_also_the_second_time(files):
    image, parts, label = files
    for part in parts:
        save(label.parent.parent / os.path.basename(part), np.zeros(nibabel.load(part).shape, np.uint8))
    assert merge_masks(image, parts, label) is False
    assert merge_masks(image, parts, label) is False


def test_a_file_of_another_origin_is_replaced(files):
    image, parts, label = files
    save(label, np.zeros((3, 3, 3), np.uint8))
    assert merge_masks(image, parts, label) is True
    label.write_bytes(b"torn")
    assert merge_masks(image, parts, label) is True
    np.testing.assert_array_equal(np.asarray(nibabel.load(label).dataobj), right_and_left())


def moved(mask, millimeters):
    affine = LPS.copy()
    affine[2, 3] += millimeters
    return mask, affine


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mask: (mask[:-1], LPS), "is 11x10x8"),
        (lambda mask: (mask[::-1].copy(), np.diag([2.0, -2.0, 3.0, 1.0])), "off its image"),
        (lambda mask: moved(mask, 60), "is 60 mm off its image"),
        (lambda mask: (mask, LPS @ np.diag([0.5, 0.5, 0.5, 1])), "has voxels of 1 x 1 x 1.5 mm"),
        (lambda mask: ((mask > 0) * np.float32(0.3), LPS), "holds the value 0.3"),
    ],
)
def test_a_mask_that_is_elsewhere_or_no_mask_is_named_and_nothing_is_written(change, words, files):
    image, parts, label = files
    part = next(iter(parts))
    mask = np.asarray(nibabel.load(part).dataobj)
    save(label.parent.parent / os.path.basename(part), *change(mask))
    with pytest.raises(InputError) as error:
        merge_masks(image, parts, label)
    assert part in str(error.value) and words in str(error.value)
    assert not label.exists()


def test_a_mask_in_another_order_of_voxels_is_where_its_header_says(files):
    image, parts, label = files
    for part in parts:
        mask = nibabel.load(part)
        order = np.array([[2, -1], [0, 1], [1, -1]])
        nibabel.save(mask.as_reoriented(order), part)
    merge_masks(image, parts, label)
    np.testing.assert_array_equal(np.asarray(nibabel.load(label).dataobj), right_and_left())
