from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from med3d_ext.errors import InputError
from med3d_ext.transforms import MergeLabelsd


def label(values: list[int], dtype: torch.dtype = torch.float32) -> MetaTensor:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.tensor(values, dtype=dtype).reshape(1, -1, 1, 1), affine=affine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_values_are_merged_by_the_table_of_the_domain(dtype: torch.dtype) -> None:
    transform = MergeLabelsd("label", {"liver": {"0": 0, "1": 1, "2": 1}, "brain": {"1": 1, "2": 2}})
    liver = transform({"label": label([0, 1, 2, 1], dtype), "domain": "liver"})["label"]
    brain = transform({"label": label([0, 1, 2, 1], dtype), "domain": "brain"})["label"]
    assert liver.flatten().tolist() == [0, 1, 1, 1]
    assert brain.flatten().tolist() == [0, 1, 2, 1]
    assert liver.dtype == dtype
    assert liver.affine.diag().tolist() == [1, 2, 3, 1]


def test_values_that_swap_do_not_run_into_each_other() -> None:
    result = MergeLabelsd("label", {1: 2, 2: 1})({"label": label([0, 1, 2])})["label"]
    assert result.flatten().tolist() == [0, 2, 1]


def test_an_image_without_label_may_pass() -> None:
    transform = MergeLabelsd("label", {"liver": {"2": 1}}, allow_missing_keys=True)
    assert transform({"image": "ct.nii", "domain": "liver"}) == {"image": "ct.nii", "domain": "liver"}


def test_a_value_beyond_the_classes_is_refused() -> None:
    with pytest.raises(InputError, match="holds the value 3, the classes end at 2"):
        MergeLabelsd("label", {"0": 0, "1": 1, "2": 1})({"label": label([0, 1, 3])})
