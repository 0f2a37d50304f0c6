"""Labels, label maps and intensities against numpy, torch and MONAI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange

from med3d_ext.errors import InputError
from med3d_ext.transforms import HUWindowd, LogitsToLabelMapd, MergeLabelsd, PercentileNormalized, values

AFFINE = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))


def label(classes: list[int], dtype: torch.dtype = torch.float32) -> MetaTensor:
    return MetaTensor(torch.tensor(classes, dtype=dtype).reshape(1, -1, 1, 1), affine=AFFINE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_values_are_merged_by_the_table_of_the_domain(dtype: torch.dtype) -> None:
    transform = MergeLabelsd("label", {"liver": {"0": 0, "1": 1, "2": 1}, "brain": {"1": 2, "2": 1}}, True)
    for domain, expected in {"liver": [0, 1, 1, 1], "brain": [0, 2, 1, 2]}.items():
        merged = transform({"label": label([0, 1, 2, 1], dtype), "domain": domain})["label"]
        assert merged.flatten().tolist() == expected and merged.dtype == dtype
        assert torch.equal(merged.affine, AFFINE)
    assert transform({"image": "ct.nii", "domain": "liver"}) == {"image": "ct.nii", "domain": "liver"}


def test_a_value_beyond_the_classes_is_refused() -> None:
    with pytest.raises(InputError, match="holds the value 3, the classes end at 2"):
        MergeLabelsd("label", {"0": 0, "1": 1, "2": 1})({"label": label([0, 1, 3])})


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_label_map_is_the_argmax_in_one_byte(classes, dtype, monkeypatch):
    monkeypatch.setattr(values, "VOXELS", 150)  # slabs of 3 of 7 layers
    logits = torch.randn(classes, 7, 5, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, 0] = 1  # ties go to the first channel
    labels = LogitsToLabelMapd("pred")({"pred": logits})["pred"]
    assert labels.dtype == torch.uint8 and labels.shape == (1, 7, 5, 10)
    assert torch.equal(labels[0].long(), logits.argmax(0)) and not labels[0, 0].any()


def test_a_label_map_keeps_geometry_and_the_record_of_transforms():
    logits = MetaTensor(torch.randn(2, 4, 4, 4), affine=AFFINE, meta={"filename_or_obj": "ct.nii"})
    logits.applied_operations = [{"class": "Flip"}]
    labels = LogitsToLabelMapd("pred")({"pred": logits})["pred"]
    assert torch.equal(labels.affine, logits.affine) and labels.meta["filename_or_obj"] == "ct.nii"
    assert labels.applied_operations == logits.applied_operations


def by_numpy(voxels: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    voxels = voxels.astype(np.float64)
    if limits is not None:
        voxels = voxels.clip(*limits)
    voxels = voxels.clip(*np.percentile(voxels, (0.5, 99.5)))
    return (voxels - voxels.mean()) / voxels.std()


def ct(shape: tuple[int, int, int] = (40, 36, 30), seed: int = 0) -> np.ndarray:
    """A quarter of air, soft tissue, some bone and metal, in HU."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(40, 60, shape)
    voxels[: shape[0] // 4] = -1000
    voxels[-3:, :8] = rng.uniform(300, 1500, (3, 8, shape[2]))
    voxels[20, 20, 20] = 30000
    return voxels.astype(np.float32)


# MONAI's percentile changes over at 10^6 voxels, torch's quantile ends at 2^24.
@pytest.mark.parametrize("shape", [(40, 36, 30), (130, 110, 90), pytest.param((257,) * 3, marks=pytest.mark.slow)])
def test_clip_and_z_score_equal_numpy_with_the_range_of_the_domain(shape):
    item = {"image": MetaTensor(ct(shape)[None], affine=AFFINE)}
    before = item["image"].clone()
    transform = PercentileNormalized("image", intensity_range={"liver": [-125, 275], "brain": None})
    for domain, limits in {"liver": (-125, 275), "brain": None}.items():
        result = transform({**item, "domain": domain})["image"]
        assert np.abs(result.numpy()[0] - by_numpy(ct(shape), limits)).max() < 1e-5
        assert torch.equal(result.affine, AFFINE) and torch.equal(item["image"], before)


def test_a_full_range_ct_and_its_clipped_8_bit_copy_give_equal_inputs() -> None:
    full = ct()
    stored = np.round((full.clip(-125, 275) + 125) / 400 * 255).astype(np.uint8)
    copy = stored.astype(np.float32) / 255 * 400 - 125
    transform = PercentileNormalized("image", intensity_range=[-125, 275])
    first, second = (transform({"image": MetaTensor(voxels[None])})["image"] for voxels in (full, copy))
    assert float((first - second).abs().max()) < 0.01
    alone = PercentileNormalized("image")({"image": MetaTensor(full[None])})["image"]
    assert float((alone - second).abs().max()) > 0.1


def test_a_volume_of_one_value_becomes_zero() -> None:
    result = PercentileNormalized("image")({"image": MetaTensor(torch.full((1, 5, 5, 5), 7.0))})["image"]
    assert torch.equal(result.as_tensor(), torch.zeros(1, 5, 5, 5))


PEAK = r"""
import re, sys
from med3d_ext.transforms import LoadVolumed, PercentileNormalized
item = LoadVolumed(keys="image")({"image": sys.argv[1]})
PercentileNormalized("image", intensity_range=[-125, 275])(item)
# Not ru_maxrss, which begins at what the process that started this one had.
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 2**20)
"""


@pytest.mark.slow
def test_a_ct_of_512_512_300_stays_under_3_gb(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1024, 1500, (512, 512, 300), dtype=np.int16)
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(1, -10)  # scaled files are read through float64
    nibabel.save(image, tmp_path / "ct.nii")
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "ct.nii"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3.0


def test_a_window_is_monais_scaling_bit_for_bit_and_leaves_the_input():
    volume = MetaTensor(torch.randn(1, 9, 8, 7) * 300, affine=AFFINE)
    before = volume.clone()
    ours = HUWindowd("image", [-125.3, 250])({"image": volume})["image"]
    theirs = ScaleIntensityRange(-125.3, 250, -1.0, 1.0, clip=True)(volume)
    assert torch.equal(ours, theirs) and torch.equal(volume, before)
    assert torch.equal(ours.affine, volume.affine) and ours.dtype == torch.float32


@pytest.mark.parametrize(("offset", "warnings"), [(0.0, 0), (900.0, 1)])  # 900: stored without the rescale intercept
def test_a_volume_that_is_no_ct_in_hu_is_warned_of_by_its_name(caplog, offset, warnings):
    volume = MetaTensor(ct()[None] + offset, meta={"filename_or_obj": "scan.nrrd"})
    volume[volume < -1000 + offset] = -1000 + offset
    before = HUWindowd("image", [-125, 250])({"image": volume})["image"]
    after = HUWindowd("image", [-125, 250], expected_below=-100.0)({"image": volume})["image"]
    assert torch.equal(before, after) and len(caplog.records) == warnings
    assert all(each.message.startswith("'scan.nrrd' holds no value below -100 (lowest: ") for each in caplog.records)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: PercentileNormalized("image", intensity_range={"liver": [275, -125]}), "intensity_range"),
        (lambda: HUWindowd("image", [250, -200]), "hu_window"),
    ],
)
def test_a_range_that_does_not_ascend_is_refused(make, argument) -> None:
    with pytest.raises(ValueError, match=rf"{argument} must be \[lowest, highest\], got \[2"):
        make()


def test_channels_are_normalized_each_by_itself():
    first, second = (torch.randn(1, 6, 7, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    normalize = PercentileNormalized("image")
    both = normalize({"image": torch.cat([first, 1000 + 50 * second])})["image"]
    alone = [normalize({"image": each})["image"] for each in (first, 1000 + 50 * second)]
    assert torch.equal(both, torch.cat(alone))
