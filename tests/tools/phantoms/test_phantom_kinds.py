"""The kinds "3dseg8" and "lung": eight domains with true partial labels, chests in two modalities."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom_checks import best_interval_dice, pairs, world_center

from med3d_ext.tools.phantoms.dataset import CT_DOMAINS, phantom_dataset

DOMAINS = {
    "Task01_BrainTumour": (("FLAIR", "T1gd"), 3),
    "Task02_Heart": (("MRI",), 1),
    "Task03_Liver": (("CT",), 1),
    "Task04_Hippocampus": (("MRI",), 2),
    "Task05_Prostate": (("T2", "ADC"), 2),
    "Task07_Pancreas": (("CT",), 1),
    "Task08_HepaticVessel": (("CT",), 1),
    "Task09_Spleen": (("CT",), 1),
}


@pytest.fixture(scope="module")
def seg8(tmp_path_factory) -> Path:
    return phantom_dataset("3dseg8", tmp_path_factory.mktemp("phantoms") / "3dseg8", cases=3, seed=2)


@pytest.fixture(scope="module")
def lung(tmp_path_factory) -> Path:
    return phantom_dataset("lung", tmp_path_factory.mktemp("phantoms") / "lung", cases=4, seed=2)


def first_channel(image: nib.Nifti1Image) -> np.ndarray:
    values = np.asarray(image.dataobj)
    return values[..., 0] if values.ndim == 4 else values


def content(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_eight_domains_have_the_channels_and_classes_of_the_decathlon(seg8):
    assert {path.name for path in seg8.iterdir() if path.is_dir()} == set(DOMAINS)
    for name, (channels, classes) in DOMAINS.items():
        assert tuple(content(seg8 / name)["modality"].values()) == channels
        assert len(content(seg8 / name)["labels"]) == classes + 1
        for image, label in pairs(seg8 / name):
            assert image.shape[3:] == ((len(channels),) if len(channels) > 1 else ())
            assert image.shape[:3] == label.shape
            np.testing.assert_array_equal(image.affine, label.affine)
            assert set(np.unique(np.asarray(label.dataobj))) == set(range(classes + 1))
            assert 36 <= min(label.shape) <= max(label.shape) <= 64


def test_ct_domains_hold_the_same_image_bytes_and_labels_that_never_overlap(seg8):
    for case in range(3):
        images, labels = [], []
        for name in CT_DOMAINS:
            entry = content(seg8 / name)["training"][case]
            images.append(hashlib.sha256((seg8 / name / entry["image"]).read_bytes()).hexdigest())
            labels.append(np.asarray(nib.load(seg8 / name / entry["label"]).dataobj))
        assert len(set(images)) == 1
        organs = dict(zip(CT_DOMAINS, labels))
        both = {"Task03_Liver", "Task08_HepaticVessel"}  # the liver holds its vessels
        assert (organs["Task03_Liver"] >= organs["Task08_HepaticVessel"]).all()
        assert sum(label for name, label in organs.items() if name not in both).max() == 1
        assert not (organs["Task03_Liver"] & (organs["Task07_Pancreas"] | organs["Task09_Spleen"])).any()


def test_scans_of_different_cases_differ(seg8):
    for name in DOMAINS:
        first, second, _ = (image for image, _ in pairs(seg8 / name))
        assert first.shape != second.shape or (np.asarray(first.dataobj) != np.asarray(second.dataobj)).any()
        assert not np.allclose(first.header.get_zooms()[:3], second.header.get_zooms()[:3])


def test_domains_have_spacings_and_scales_of_their_own(seg8):
    spacings = {
        name: np.median([i.header.get_zooms()[:3] for i, _ in pairs(seg8 / name)], 0).round(1) for name in DOMAINS
    }
    assert len({tuple(spacing) for spacing in spacings.values()}) == 5  # four MR domains and the CT scans
    tops = [np.percentile(first_channel(image), 99) for image, _ in pairs(seg8 / "Task02_Heart")]
    assert max(tops) > 1.3 * min(tops)


@pytest.mark.parametrize("name", DOMAINS)
def test_no_interval_of_values_finds_a_class(seg8, name):
    for image, label in pairs(seg8 / name):
        values, parts = first_channel(image).ravel(), np.asarray(label.dataobj).ravel()
        for value in range(1, DOMAINS[name][1] + 1):
            assert best_interval_dice(values, parts == value) < 0.7


@pytest.mark.parametrize("name", DOMAINS)
def test_targets_are_big_enough_to_be_learned(seg8, name):
    for _, label in pairs(seg8 / name):
        counts = np.bincount(np.asarray(label.dataobj).ravel())
        assert counts[1:].min() >= 30
        assert counts[1:].sum() >= 150


def test_spleen_and_liver_lie_on_their_sides(seg8):
    for (image, liver), (_, spleen) in zip(pairs(seg8 / "Task03_Liver"), pairs(seg8 / "Task09_Spleen")):
        body = world_center(np.asarray(image.dataobj) > -200, image.affine)[0]
        assert world_center(np.asarray(liver.dataobj) > 0, liver.affine)[0] > body + 25
        assert world_center(np.asarray(spleen.dataobj) > 0, spleen.affine)[0] < body - 50


def test_the_anterior_hippocampus_lies_in_front(seg8):
    for _, label in pairs(seg8 / "Task04_Hippocampus"):
        parts = np.asarray(label.dataobj)
        assert world_center(parts == 1, label.affine)[1] > world_center(parts == 2, label.affine)[1] + 8


def test_the_enhancing_ring_is_bright_after_contrast_agent_alone(seg8):
    for image, label in pairs(seg8 / "Task01_BrainTumour"):
        flair, t1 = np.moveaxis(np.asarray(image.dataobj).astype(float), -1, 0)
        parts = np.asarray(label.dataobj)
        assert t1[parts == 3].mean() > 1.4 * t1[parts == 1].mean()
        assert flair[parts == 3].mean() < flair[parts == 1].mean()


def test_lung_entries_name_their_modality(lung):
    entries = content(lung)["training"]
    assert [entry["modality"] for entry in entries] == ["CT", "MR", "CT", "MR"]
    assert content(lung)["labels"] == {"0": "background", "1": "right lung", "2": "left lung"}
    for (image, _), entry in zip(pairs(lung), entries):
        assert (np.asarray(image.dataobj).min() < -800) == (entry["modality"] == "CT")


def test_right_and_left_lung_lie_on_their_sides_and_are_dark(lung):
    for image, label in pairs(lung):
        values, parts = np.asarray(image.dataobj), np.asarray(label.dataobj)
        assert world_center(parts == 1, label.affine)[0] > world_center(parts == 2, label.affine)[0] + 80
        inside = np.median(values[parts > 0])
        assert np.percentile(values, 1) < inside < np.percentile(values, 70)
        liters = (parts > 0).sum() * abs(np.linalg.det(label.affine)) / 1e6
        assert 1 < liters < 5


def test_no_interval_of_mr_values_finds_the_lungs(lung):
    for image, label in pairs(lung)[1::2]:
        values, parts = np.asarray(image.dataobj).ravel(), np.asarray(label.dataobj).ravel()
        assert best_interval_dice(values, parts > 0) < 0.8


def test_the_interval_search_finds_what_can_be_thresholded():
    values = np.arange(1000) % 100
    assert best_interval_dice(values, (values >= 40) & (values < 60), steps=50) == 1
