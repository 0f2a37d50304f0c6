"""The fingerprint: spacing from headers as MONAI reads them, voxels read once."""

from __future__ import annotations

import json
import os
import time

import nibabel
import numpy as np
import pytest

from med3d_ext.data import fingerprint
from med3d_ext.data.fingerprint import (
    read_header,
    scan_cases,
    summarize,
)
from med3d_ext.errors import Faults
from med3d_ext.transforms.load import load_volume

SMALL = np.zeros((4, 5, 6), np.uint8)


def test_a_header_gives_shape_spacing_and_orientation_of_the_stored_axes(nifti, tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    header = read_header(nifti(tmp_path / "a.nii.gz", SMALL, affine))
    assert header == {"shape": [4, 5, 6], "channels": 1, "spacing": [1, 2, 3], "orientation": "ALS"}


def test_where_sform_and_pixdim_disagree_the_spacing_is_the_one_that_volumes_are_loaded_with(nifti, tmp_path):
    path = nifti(tmp_path / "a.nii", SMALL, np.diag([2.0, 2, 3, 1]), pixdim=(1, 1.5, 4))
    loaded = np.linalg.norm(load_volume(path).affine.numpy()[:3, :3], axis=0)
    raw = nibabel.affines.voxel_sizes(nibabel.load(path).affine)
    assert not np.allclose(loaded, raw)  # else this test shows nothing
    np.testing.assert_allclose(read_header(path)["spacing"], loaded)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (0, 0, 0), (float("nan"), 1, 1)])
def test_a_header_without_spacing_has_none(nifti, tmp_path, spacing):
    header = read_header(nifti(tmp_path / "a.nii.gz", SMALL, pixdim=spacing))
    assert header["spacing"] is None and header["orientation"] is None


def test_spacing_mean_and_median_are_per_axis_over_the_cases_that_are_not_test(nifti, tmp_path):
    spacings = [(1, 1, 2), (1, 3, 5), (4, 2, 5), (90, 90, 90)]
    cases = []
    for number, spacing in enumerate(spacings):
        header = read_header(nifti(tmp_path / f"{number}.nii", SMALL, np.diag([*spacing, 1.0])))
        cases.append({**header, "intensity": {"minimum": -number, "maximum": number}, "split": "training"})
    cases[-1]["split"] = "test"
    facts = summarize(cases)
    assert facts["spacing_median"] == [1, 2, 5]
    assert facts["spacing_mean"] == [2, 2, 4]
    assert facts["shape_median"] == [4, 5, 6]


def make_cases(nifti, folder, count: int = 3) -> list[dict]:
    generator = np.random.default_rng(0)
    cases = []
    for number in range(count):
        label = np.zeros((6, 7, 8), np.uint8)
        label[1:3, 2:5, 3:7] = 1
        label[2, 2, 3] = 2
        image = generator.normal(100, 20, label.shape).astype(np.float32)
        files = {
            "image": nifti(folder / f"{number}.nii.gz", image),
            "label": nifti(folder / f"l{number}.nii.gz", label),
        }
        cases.append({**{key: str(path) for key, path in files.items()}, "spacing": [1.0, 1, 1]})
    return cases


def scan(cases: list[dict], known: list[dict]) -> None:
    scan_cases(cases, known, channel=None, foreground=True, faults=Faults())


def test_the_second_pass_finds_hashes_intensities_and_labels(nifti, tmp_path):
    cases = make_cases(nifti, tmp_path)
    scan(cases, [])
    image = nibabel.load(cases[0]["image"]).get_fdata()
    found = cases[0]["intensity"]
    assert found["mean"] == pytest.approx(image.mean(), abs=1e-3)
    assert found["standard_deviation"] == pytest.approx(image.std(), abs=1e-3)
    assert (found["minimum"], found["maximum"]) == (image.min(), image.max())
    for q, value in found["percentiles"].items():
        assert value == pytest.approx(np.percentile(image, float(q)), abs=1e-3)
    assert cases[0]["labels"] == {"0": 6 * 7 * 8 - 24, "1": 23, "2": 1}
    assert cases[0]["target_box"] == [[1, 2, 3], [3, 5, 7]]
    assert len({case["sha256"] for case in cases}) == 3 and len({case["label_sha256"] for case in cases}) == 1
    json.dumps(cases)


def test_a_second_call_reads_no_voxel_and_a_changed_file_is_read_again(nifti, tmp_path, monkeypatch):
    first = make_cases(nifti, tmp_path)
    scan(first, [])
    second = [{key: case[key] for key in ("image", "label", "spacing")} for case in first]
    third = [dict(case) for case in second]
    real, read = fingerprint.read_voxels, []
    monkeypatch.setattr(fingerprint, "read_voxels", lambda case, *args: read.append(case["image"]) or real(case, *args))
    scan(second, json.loads(json.dumps(first)))
    assert read == [] and second == first
    nifti(third[1]["image"], np.full((6, 7, 8), 3.0, np.float32))
    os.utime(third[1]["image"], ns=(1, 1))
    scan(third, first)
    assert read == [third[1]["image"]]
    assert third[1]["intensity"]["maximum"] == 3 and third[1]["sha256"] != first[1]["sha256"]


@pytest.mark.slow
def test_the_headers_of_300_files_take_less_than_10_seconds(nifti, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8)
    paths = [nifti(tmp_path / f"{number}.nii.gz", voxels, np.diag([1.0, 1, 1 + number, 1])) for number in range(300)]
    start = time.perf_counter()
    spacing = np.array([read_header(path)["spacing"] for path in paths])
    assert time.perf_counter() - start < 10
    assert np.median(spacing, axis=0)[2] == pytest.approx(150.5)
