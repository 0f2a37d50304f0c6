from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange

from med3d_ext.transforms import HUWindowd, PercentileNormalized


def by_numpy(values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    values = values.astype(np.float64)
    if limits is not None:
        values = values.clip(*limits)
    values = values.clip(*np.percentile(values, (0.5, 99.5)))
    return (values - values.mean()) / values.std()


def ct(shape: tuple[int, int, int] = (40, 36, 30), seed: int = 0) -> np.ndarray:
    """A quarter of air, soft tissue, some bone and metal, in HU."""
    rng = np.random.default_rng(seed)
    values = rng.normal(40, 60, shape)
    values[: shape[0] // 4] = -1000
    values[-3:, :8] = rng.uniform(300, 1500, (3, 8, shape[2]))
    values[20, 20, 20] = 30000
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 36, 30), (130, 110, 90)])  # MONAI's percentile changes over at 10^6 voxels
@pytest.mark.parametrize("limits", [None, (-125.0, 275.0)])
def test_equals_numpy(shape: tuple[int, int, int], limits: tuple[float, float] | None) -> None:
    values = ct(shape)
    result = PercentileNormalized("image", intensity_range=limits)({"image": MetaTensor(values[None])})["image"]
    assert np.abs(result.numpy()[0] - by_numpy(values, limits)).max() < 1e-5


def test_more_than_2_to_the_24_voxels_equal_numpy() -> None:
    values = np.random.default_rng(1).normal(100, 30, (1, 257, 257, 257)).astype(np.float32)
    assert values.size > 2**24
    result = PercentileNormalized("image")({"image": torch.as_tensor(values)})["image"]
    assert np.abs(result.numpy() - by_numpy(values)).max() < 1e-5


def test_a_full_range_ct_and_its_clipped_8_bit_copy_give_equal_inputs() -> None:
    full = ct()
    stored = np.round((full.clip(-125, 275) + 125) / 400 * 255).astype(np.uint8)
    copy = stored.astype(np.float32) / 255 * 400 - 125
    transform = PercentileNormalized("image", intensity_range=[-125, 275])
    first, second = (transform({"image": MetaTensor(values[None])})["image"] for values in (full, copy))
    assert float((first - second).abs().max()) < 0.01
    alone = PercentileNormalized("image")({"image": MetaTensor(full[None])})["image"]
    assert float((alone - second).abs().max()) > 0.1


def test_each_domain_has_its_range_and_none_clips_nothing() -> None:
    values = ct()
    transform = PercentileNormalized("image", intensity_range={"liver": [-125, 275], "brain": None})
    for domain, limits in (("liver", (-125, 275)), ("brain", None)):
        result = transform({"image": MetaTensor(values[None]), "domain": domain})["image"]
        assert np.abs(result.numpy()[0] - by_numpy(values, limits)).max() < 1e-5


def test_the_whole_volume_counts_also_its_zeros() -> None:
    values = np.zeros((1, 4, 4, 4), np.float32)
    values[0, :2] = 10
    result = PercentileNormalized("image")({"image": MetaTensor(values)})["image"]
    assert sorted(set(result.flatten().tolist())) == pytest.approx([-1.0, 1.0])


def test_affine_stays_and_neither_the_item_nor_its_volume_changes() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    item = {"image": MetaTensor(ct()[None], affine=affine), "label": "untouched"}
    before = item["image"].clone()
    result = PercentileNormalized("image", intensity_range=[-125, 275])(item)
    assert torch.equal(result["image"].affine, affine)
    assert torch.equal(item["image"], before)
    assert result["label"] == "untouched"


def test_a_volume_of_one_value_becomes_zero() -> None:
    result = PercentileNormalized("image")({"image": MetaTensor(torch.full((1, 5, 5, 5), 7.0))})["image"]
    assert torch.equal(result.as_tensor(), torch.zeros(1, 5, 5, 5))


def test_a_range_that_does_not_ascend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"intensity_range must be \[lowest, highest\], got \[275, -125\]"):
        PercentileNormalized("image", intensity_range={"liver": [275, -125]})


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
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(-1024, 1500, (512, 512, 300), dtype=np.int16)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(1, -10)  # scaled files are read through float64
    nibabel.save(image, tmp_path / "ct.nii")
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "ct.nii"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3.0


def test_a_window_is_monais_scaling_bit_for_bit_and_leaves_the_input():
    volume = MetaTensor(torch.randn(1, 9, 8, 7) * 300, affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    before = volume.clone()
    ours = HUWindowd("image", [-125.3, 250])({"image": volume})["image"]
    theirs = ScaleIntensityRange(-125.3, 250, -1.0, 1.0, clip=True)(volume)
    assert torch.equal(ours, theirs) and torch.equal(volume, before)
    assert torch.equal(ours.affine, volume.affine) and ours.dtype == torch.float32


def test_a_window_must_ascend():
    with pytest.raises(ValueError, match=r"hu_window must be \[lowest, highest\], got \[250, -200\]"):
        HUWindowd("image", [250, -200])


@pytest.mark.parametrize(("offset", "warnings"), [(0.0, 0), (900.0, 1)])  # 900: stored without the rescale intercept
def test_a_volume_that_is_no_ct_in_hu_is_warned_of_by_its_name(caplog, offset, warnings):
    volume = MetaTensor(ct()[None] + offset, meta={"filename_or_obj": "scan.nrrd"})
    volume[volume < -1000 + offset] = -1000 + offset
    before = HUWindowd("image", [-125, 250])({"image": volume})["image"]
    after = HUWindowd("image", [-125, 250], expected_below=-100.0)({"image": volume})["image"]
    assert torch.equal(before, after) and len(caplog.records) == warnings
    assert all(
        record.message.startswith("'scan.nrrd' holds no value below -100 (lowest: ") for record in caplog.records
    )
