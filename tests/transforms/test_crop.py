"""The crop to the target against boxes by hand."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from med3d_ext.transforms import CropTargetd


def item(*ranges, spacing=(1.0, 1.0, 1.0)):
    label = torch.zeros(1, 20, 20, 20)
    if ranges:
        label[(0, *[slice(*each) for each in ranges])] = 1
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([7.0, -3.0, 5.0])
    image = torch.arange(8000.0).reshape(1, 20, 20, 20)
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def test_the_crop_is_the_targets_box_and_its_margin_in_mm_cut_at_the_faces():
    data = item((8, 12), (2, 6), (15, 19), spacing=(1.0, 2.0, 4.0))
    cropped = CropTargetd(["image", "label"], margin_mm=5.0)(data)
    assert torch.equal(cropped["image"].as_tensor(), data["image"].as_tensor()[:, 3:17, 0:9, 13:20])
    assert torch.equal(cropped["label"].as_tensor(), data["label"].as_tensor()[:, 3:17, 0:9, 13:20])


def test_every_voxel_keeps_its_place_in_mm():
    data = item((8, 12), (6, 9), (5, 9), spacing=(1.0, 2.0, 4.0))
    cropped = CropTargetd(["image", "label"], margin_mm=0.0)(data)["image"]
    corner = data["image"].affine @ torch.tensor([8.0, 6.0, 5.0, 1.0], dtype=torch.float64)
    assert torch.equal(cropped.affine[:, 3], corner)


def test_a_label_without_foreground_leaves_the_whole_volume():
    data = item()
    assert CropTargetd(["image", "label"])(data)["image"].shape == (1, 20, 20, 20)
