"""Phantom nodules: size tells nothing about malignancy, the outline does."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from med3d_ext.tools.phantoms.dataset import phantom_dataset


@pytest.fixture(scope="module")
def nodules(tmp_path_factory) -> Path:
    return phantom_dataset("nodules", tmp_path_factory.mktemp("phantoms") / "nodules", cases=20, seed=1)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "nodules.csv", newline="") as file:
        return list(csv.DictReader(file))


def voxels(folder: Path, part: str, row: dict[str, str]) -> np.ndarray:
    return np.asarray(nib.load(folder / part / f"{row['nodule']}.nii.gz").dataobj)


def surface_share(mask: np.ndarray) -> float:
    """Surface voxels against those of a ball of the same volume: 1 for a ball, more for a rough outline."""
    return float((mask & ~binary_erosion(mask)).sum() / (4.836 * mask.sum() ** (2 / 3)))


def by_malignancy(folder: Path, values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    malignant = np.array([int(row["malignancy"]) > 3 for row in rows(folder)])
    return np.array(values)[~malignant], np.array(values)[malignant]


def test_the_table_lists_every_file_and_all_ratings(nodules):
    with open(nodules / "nodules.csv") as file:
        assert file.readline().strip() == "nodule,scan,malignancy"
    names = {row["nodule"] for row in rows(nodules)}
    assert len(names) == 20
    for part in ("images", "masks"):
        assert {path.name.removesuffix(".nii.gz") for path in (nodules / part).iterdir()} == names
    assert {row["malignancy"] for row in rows(nodules)} == set("12345")


def test_some_scans_hold_two_nodules(nodules):
    scans = [row["scan"] for row in rows(nodules)]
    assert len(set(scans)) == 16
    assert all(row["nodule"].startswith(f"{row['scan']}_nod") for row in rows(nodules))


def test_cubes_are_ct_of_one_millimeter_with_the_nodule_in_the_middle(nodules):
    for row in rows(nodules):
        image = nib.load(nodules / "images" / f"{row['nodule']}.nii.gz")
        assert image.shape == (48, 48, 48)
        np.testing.assert_allclose(image.header.get_zooms(), 1)
        mask = voxels(nodules, "masks", row) > 0
        np.testing.assert_allclose(np.argwhere(mask).mean(0), 23.5, atol=5)
        values = np.asarray(image.dataobj)
        assert values[mask].mean() > np.median(values) + 200


def test_sizes_of_benign_and_malignant_nodules_are_equal(nodules):
    sizes = [float(voxels(nodules, "masks", row).sum()) for row in rows(nodules)]
    benign, malignant = by_malignancy(nodules, sizes)
    np.testing.assert_array_equal(np.sort(benign), np.sort(malignant))
    assert max(sizes) > 3 * min(sizes)


def test_malignant_nodules_have_the_rougher_outline(nodules):
    shares = [surface_share(voxels(nodules, "masks", row) > 0) for row in rows(nodules)]
    benign, malignant = by_malignancy(nodules, shares)
    assert (malignant[:, None] > benign[None]).mean() > 0.9


def test_density_inside_overlaps_between_benign_and_malignant(nodules):
    means = [float(voxels(nodules, "images", row)[voxels(nodules, "masks", row) > 0].mean()) for row in rows(nodules)]
    benign, malignant = by_malignancy(nodules, means)
    assert malignant.max() > benign.min()


def test_the_same_seed_gives_the_same_nodules(nodules, tmp_path):
    again = phantom_dataset("nodules", tmp_path / "again", cases=2, seed=1)
    name = f"images/{rows(again)[1]['nodule']}.nii.gz"
    assert (again / name).read_bytes() == (nodules / name).read_bytes()
