"""The region of interest against boxes by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate

from med3d_ext.metrics.roi import ROIMetric, region_of_interest


def block(*ranges: tuple[int, int], shape: tuple[int, int, int] = (20, 20, 20)) -> torch.Tensor:
    mask = torch.zeros(1, *shape)
    mask[(0, *[slice(*each) for each in ranges])] = 1
    return mask


def with_spacing(mask: torch.Tensor, *spacing: float) -> MetaTensor:
    return MetaTensor(mask, affine=torch.diag(torch.tensor([*spacing, 1.0])))


SPECK = block((3, 6), (3, 6), (3, 6)) + block((18, 20), (18, 20), (18, 20))
BOXES = {
    "the mask's": (block((3, 5), (6, 9), (10, 14)), (1, 1, 1), 0, [3, 6, 10], [5, 9, 14]),
    "a margin in mm, up to voxels": (block((8, 10), (8, 10), (8, 10)), (1, 2, 5), 4, [4, 6, 7], [14, 12, 11]),
    "cut at the faces": (block((1, 19), (0, 3), (18, 20)), (1, 1, 1), 5, [0, 0, 13], [20, 8, 20]),
    "the largest component's": (SPECK, (1, 1, 1), 0, [3, 3, 3], [6, 6, 6]),
}


@pytest.mark.parametrize("what", BOXES)
def test_the_region_is_the_box_of_the_largest_component_with_its_margin(what):
    mask, spacing, margin, *expected = BOXES[what]
    assert [end.tolist() for end in region_of_interest(mask, spacing, margin)] == expected
    assert region_of_interest(mask * 0, spacing, margin) is None


def test_a_second_organ_is_in_the_region_and_a_speck_is_not():
    """Two kidneys of 27 and 8 voxels, and one voxel of noise, on both sides of the share that is asked for."""
    mask = torch.zeros(1, 20, 20, 20)
    mask[0, 2:5, 2:5, 2:5], mask[0, 12:14, 2:4, 2:4], mask[0, 18, 18, 18] = 1, 1, 1
    ends = {part: region_of_interest(mask, (1, 1, 1), 0.0, part)[1].tolist() for part in (1.0, 0.31, 0.29, 0.01)}
    assert ends == {1.0: [5, 5, 5], 0.31: [5, 5, 5], 0.29: [14, 5, 5], 0.01: [19, 19, 19]}


def measure(quantity: str, prediction: torch.Tensor, label: torch.Tensor, margin_mm: float = 0.0) -> float:
    metric = ROIMetric(quantity, margin_mm)
    return float(metric([prediction], [label])[0])


def test_recall_is_the_share_of_the_label_inside_the_box():
    label = block((0, 10), (5, 10), (5, 10))
    assert measure("recall", block((5, 8), (5, 10), (5, 10)), label) == pytest.approx(0.3)
    assert measure("recall", block((5, 8), (5, 10), (5, 10)), label, margin_mm=2) == pytest.approx(0.7)


def test_share_is_that_of_the_volume():
    assert measure("share", block((0, 10), (0, 10), (0, 4)), block((0, 1), (0, 1), (0, 1))) == pytest.approx(0.05)


def test_the_margin_follows_the_affine_of_each_prediction():
    mask = block((8, 10), (8, 10), (8, 10))
    narrow, wide = with_spacing(mask, 1, 2, 5), with_spacing(mask, 4, 4, 4)
    expected = [10 * 6 * 4 / 8000, 4**3 / 8000]
    metric = ROIMetric("share", 4.0)
    np.testing.assert_allclose(metric([narrow, wide], [mask, mask]).ravel(), expected, rtol=1e-5)
    batch = list_data_collate([{"pred": narrow}, {"pred": wide}])["pred"]
    np.testing.assert_allclose(metric(batch, torch.stack([mask, mask])).ravel(), expected, rtol=1e-5)


def test_an_empty_prediction_recalls_nothing_and_costs_the_whole_volume():
    empty, label = torch.zeros(1, 8, 8, 8), block((1, 3), (1, 3), (1, 3), shape=(8, 8, 8))
    assert measure("recall", empty, label) == 0
    assert measure("share", empty, label) == 1


def test_cases_without_a_target_are_left_out_of_the_mean():
    box, nothing = block((0, 10), (0, 10), (0, 10)), torch.zeros(1, 20, 20, 20)
    metric = ROIMetric("recall", 0.0)
    metric([box, box], [nothing, block((0, 20), (0, 10), (0, 10))])
    assert float(metric.aggregate()) == pytest.approx(0.5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="quantity must be 'recall' or 'share', got 'size'"):
        ROIMetric("size")
    with pytest.raises(ValueError, match="y must be the label map"):
        ROIMetric()(torch.zeros(1, 1, 4, 4, 4))


def test_a_cascades_own_region_stands_for_the_predictions_and_is_found_on_any_orientation():
    label = block((2, 6), (10, 14), (16, 18))  # stored as LPS; in RAS order 14 to 18, 6 to 10, 16 to 18
    lps = torch.diag(torch.tensor([-1.0, -2.0, 3.0, 1.0]))
    lps[:3, 3] = torch.tensor([19.0, 38.0, 0.0])
    region = (np.array([16, 6, 10]), np.array([20, 12, 20])), np.diag([1.0, 2.0, 3.0, 1.0])
    pred = MetaTensor(torch.zeros_like(label), affine=lps)
    inferer = SimpleNamespace(regions=[region])
    recall, share = (ROIMetric(quantity, inferer=inferer) for quantity in ("recall", "share"))
    assert float(recall([pred], [label])[0]) == 0.5
    assert float(share([pred], [label])[0]) == pytest.approx(4 * 6 * 10 / 8000)
    assert float(ROIMetric("recall", inferer=object())([pred], [label])[0]) == 0  # no region: the prediction's
