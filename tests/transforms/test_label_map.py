"""Label maps against torch's argmax."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from med3d_ext.transforms import LogitsToLabelMapd, label_map


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_the_argmax_in_one_byte(classes, dtype, monkeypatch):
    monkeypatch.setattr(label_map, "VOXELS", 150)  # slabs of 3 of 7 layers
    logits = torch.randn(classes, 7, 5, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = LogitsToLabelMapd("pred")({"pred": logits})["pred"]
    assert labels.dtype == torch.uint8 and labels.shape == (1, 7, 5, 10)
    assert torch.equal(labels[0].long(), logits.argmax(0))


def test_ties_go_to_the_first_channel():
    labels = LogitsToLabelMapd("pred")({"pred": torch.ones(3, 2, 2, 2)})["pred"]
    assert not labels.any()


def test_geometry_and_the_record_of_transforms_stay():
    logits = MetaTensor(torch.randn(2, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    logits.meta["filename_or_obj"] = "ct.nii"
    logits.applied_operations = [{"class": "Flip"}]
    labels = LogitsToLabelMapd("pred")({"pred": logits})["pred"]
    assert torch.equal(labels.affine, logits.affine) and labels.meta["filename_or_obj"] == "ct.nii"
    assert labels.applied_operations == logits.applied_operations
