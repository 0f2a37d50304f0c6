from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Spacingd

from med3d_ext.transforms import MedianSpacingd


def oblique(spacing: tuple[float, float, float]) -> torch.Tensor:
    """An LPS affine, rotated by 10 degrees about z."""
    cos, sin = np.cos(np.radians(10)), np.sin(np.radians(10))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    affine[:3, 3] = (12.0, -30.0, 7.0)
    return torch.as_tensor(affine)


def volume(spacing: tuple[float, float, float], shape: tuple[int, int, int] = (20, 24, 10)) -> MetaTensor:
    points = torch.stack(torch.meshgrid(*[torch.linspace(0, 3, size) for size in shape], indexing="ij"))
    return MetaTensor(points.sin().sum(0)[None], affine=oblique(spacing), meta={"filename_or_obj": "case.nii.gz"})


def test_size_grows_with_spacing_over_median() -> None:
    # Equation (1) as printed would give 20 * 1 / 0.5 = 40 voxels for spacing 0.5 and median 1.
    item = MedianSpacingd("image", [1.0, 1.0, 4.0])({"image": volume((0.5, 1.0, 8.0))})
    assert item["image"].shape[1:] == pytest.approx((20 * 0.5, 24, 10 * 8 / 4), abs=1)
    assert item["image"].pixdim.tolist() == pytest.approx([1.0, 1.0, 4.0], abs=1e-5)


def test_equals_spacingd_of_monai_with_the_median_as_pixdim() -> None:
    item = {"image": volume((0.8, 0.8, 3.0)), "label": (volume((0.8, 0.8, 3.0)) > 1.5).float()}
    ours = MedianSpacingd(["image", "label"], [1.1, 0.9, 2.0], mode=["bilinear", "nearest"])(item)
    theirs = Spacingd(["image", "label"], [1.1, 0.9, 2.0], mode=["bilinear", "nearest"], dtype=torch.float32)(item)
    for key in ("image", "label"):
        assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
        assert torch.allclose(ours[key].affine, theirs[key].affine)


@pytest.mark.parametrize("domain", ["fine", "coarse"])
def test_each_domain_has_its_median_and_the_inverse_restores_shape_and_affine(domain: str) -> None:
    median = {"fine": [0.7, 0.7, 0.7], "coarse": [2.0, 2.0, 5.0]}
    chain = Compose([MedianSpacingd("image", median)])
    original = volume((0.9, 0.9, 2.5), shape=(23, 17, 11))
    item = chain({"image": original, "domain": domain})
    assert item["image"].pixdim.tolist() == pytest.approx(median[domain], abs=1e-5)
    item["pred"] = MetaTensor(item["image"].as_tensor().clone(), meta={"filename_or_obj": "case.nii.gz"})
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == original.shape
    assert torch.allclose(back.affine, original.affine, atol=1e-6)
    if domain == "fine":
        assert (back - original).abs().mean() < 0.05


def test_the_inverse_of_the_item_itself_restores_shape_and_affine() -> None:
    transform = MedianSpacingd(["image"], {"a": [2.0, 2.0, 2.0]})
    original = volume((1.0, 1.0, 3.0))
    back = transform.inverse(transform({"image": original, "domain": "a"}))["image"]
    assert back.shape == original.shape
    assert torch.allclose(back.affine, original.affine)


def test_keys_that_begin_like_the_image_are_left_alone() -> None:
    item = MedianSpacingd("image", [1.0, 1.0, 1.0])({"image": volume((1.0, 1.0, 2.0)), "image_path": "a.nii.gz"})
    assert item["image_path"] == "a.nii.gz"


def test_an_item_without_domain_takes_the_only_domain_there_is() -> None:
    item = MedianSpacingd("image", {"only": [2.0, 2.0, 2.0]})({"image": volume((1.0, 1.0, 2.0))})
    assert item["image"].pixdim.tolist() == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize("name", [None, "lung"])
def test_a_domain_without_entry_is_refused_by_name(name: str | None) -> None:
    transform = MedianSpacingd("image", {"heart": [1, 1, 1], "brain": [2, 2, 2]})
    with pytest.raises(KeyError, match=r"spacing must have an entry.*'heart', 'brain'.*got (None|'lung')"):
        transform({"image": volume((1.0, 1.0, 2.0)), "domain": name})


def test_a_spacing_of_two_components_is_refused() -> None:
    with pytest.raises(ValueError, match=r"three components \(mm\), got \[1.0, 1.0\]"):
        MedianSpacingd("image", {"heart": [1.0, 1.0]})
