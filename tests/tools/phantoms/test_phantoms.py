"""The embedded data: same seed, same bytes; true geometry; no shortcut to the organs or to malignancy."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from med3d_ext.errors import InputError
from med3d_ext.tools import cli
from med3d_ext.tools.phantoms import dataset
from med3d_ext.tools.phantoms.dataset import CT_DOMAINS, phantom_dataset


def content(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def pairs(folder: Path) -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    entries = content(folder)["training"]
    return [(nib.load(folder / entry["image"]), nib.load(folder / entry["label"])) for entry in entries]


def world_center(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return (affine @ np.append(np.argwhere(mask).mean(0), 1))[:3]


def best_interval_dice(values: np.ndarray, target: np.ndarray, steps: int = 40) -> float:
    """Greatest Dice that any interval of values reaches on the target (intervals between quantiles)."""
    edges = np.quantile(values, np.linspace(0, 1, steps + 1))
    bins = np.clip(np.searchsorted(edges, values, "right") - 1, 0, steps - 1)
    found = np.concatenate([[0], np.cumsum(np.bincount(bins, target, steps))])
    total = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=steps))])
    hits, sizes = found[None] - found[:, None], total[None] - total[:, None]
    return float((2 * hits / (np.maximum(sizes, 0) + target.sum())).max())


@pytest.fixture(scope="module")
def lits(tmp_path_factory) -> Path:
    return phantom_dataset("lits", tmp_path_factory.mktemp("phantoms") / "lits", cases=6, seed=3)


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(tmp_path):
    first, again, other = (phantom_dataset("lits", tmp_path / str(n), 1, seed) for n, seed in enumerate((5, 5, 6)))
    assert file_bytes(first) == file_bytes(again)
    name = "imagesTr/phantom_00.nii.gz"
    assert file_bytes(first)[name] != file_bytes(other)[name]


def test_a_case_is_the_same_whatever_the_number_of_cases(lits, tmp_path):
    one = phantom_dataset("lits", tmp_path / "one", cases=1, seed=3)
    assert (one / "imagesTr/phantom_00.nii.gz").read_bytes() == (lits / "imagesTr/phantom_00.nii.gz").read_bytes()


def test_orientation_spacing_and_obliqueness_vary(lits):
    images = [image for image, _ in pairs(lits)]
    assert len({nib.aff2axcodes(image.affine) for image in images}) >= 5
    spacings = np.array([image.header.get_zooms() for image in images])
    assert len(np.unique(spacings.round(3), axis=0)) == len(images)
    assert 1.5 <= spacings.min() < spacings.max() <= 4.6
    tilts = [nib.affines.obliquity(image.affine).max() for image in images]
    assert 1 <= sum(np.degrees(tilt) > 2 for tilt in tilts) < len(tilts)
    assert all(96 <= max(image.shape) <= 160 and min(image.shape) >= 40 for image in images)


def test_qform_and_sform_agree_and_label_lies_on_the_image(lits):
    for image, label in pairs(lits):
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8


def test_the_liver_lies_on_the_patients_right_in_every_orientation(lits):
    for image, label in pairs(lits):
        body = world_center(np.asarray(image.dataobj) > -200, image.affine)
        liver = world_center(np.asarray(label.dataobj) > 0, label.affine)
        assert 25 < liver[0] - body[0] < 100  # x grows to the right
        assert abs(liver[1] - body[1]) < 40


def test_labels_fit_the_image_and_tumors_are_darker_than_the_liver(lits):
    with_tumor = 0
    for image, label in pairs(lits):
        values, parts = np.asarray(image.dataobj), np.asarray(label.dataobj)
        assert set(np.unique(parts)) <= {0, 1, 2}
        assert 30 < values[parts == 1].mean() < 140
        assert values[parts == 1].std() < 35
        if (parts == 2).sum() > 50:
            with_tumor += 1
            assert values[parts == 2].mean() < values[parts == 1].mean() - 15
    assert 2 <= with_tumor < 6


def test_no_interval_of_hu_finds_the_liver(lits):
    for image, label in pairs(lits):
        values = np.asarray(image.dataobj)
        body = values > -200
        assert best_interval_dice(values[body], np.asarray(label.dataobj)[body] > 0) < 0.6


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "write_decathlon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom_dataset("lits", tmp_path / "lits", cases=1)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MED3D_CACHE", str(tmp_path))
    folder = phantom_dataset("lits", cases=1)
    assert folder.parent == tmp_path / "phantoms"
    assert folder.name.startswith("lits-1-0-v")
    assert (folder / "dataset.json").is_file()


def test_two_callers_at_once_get_one_complete_folder(tmp_path):
    results: list[Path] = []
    callers = [
        threading.Thread(target=lambda: results.append(phantom_dataset("lits", tmp_path / "a", 1))) for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [tmp_path / "a"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(pairs(tmp_path / "a")) == 1


def test_a_folder_of_other_content_is_refused_and_kept(lits, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="contains something other"):
        phantom_dataset("lits", tmp_path, cases=1)
    with pytest.raises(InputError, match="contains something other"):
        phantom_dataset("lits", lits, cases=6, seed=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unwritable_place_is_named_with_the_repair(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*MED3D_CACHE"):
        phantom_dataset("lits", tmp_path / "file" / "lits", cases=1)


def test_the_verb_writes_the_patients_and_prints_the_folder(lits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # a number as a folder stays a name
    assert cli.main(["phantoms", "lits", "--folder", "2024", "--cases", "1", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / '2024'}\n"
    name = "imagesTr/phantom_00.nii.gz"
    assert (tmp_path / "2024" / name).read_bytes() == (lits / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["liver"], "phantoms: KIND must be one of lits, 3dseg8, lung, nodules, got 'liver'."),
        (["lits", "--cases", "0"], "phantoms: --cases must be at least 1, got 0."),
        (["lits", "--seed", "-1"], "phantoms: --seed must be at least 0, got -1."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, tmp_path, capsys):
    assert cli.main(["phantoms", *words, "--folder", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not (tmp_path / "new").exists()


# Eight domains with true partial labels, and chests in two modalities

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


@pytest.mark.parametrize("name", DOMAINS)
def test_no_interval_of_values_finds_a_class(seg8, name):
    for image, label in pairs(seg8 / name):
        values, parts = first_channel(image).ravel(), np.asarray(label.dataobj).ravel()
        for value in range(1, DOMAINS[name][1] + 1):
            assert best_interval_dice(values, parts == value) < 0.7


def test_spleen_and_liver_lie_on_their_sides(seg8):
    for (image, liver), (_, spleen) in zip(pairs(seg8 / "Task03_Liver"), pairs(seg8 / "Task09_Spleen")):
        body = world_center(np.asarray(image.dataobj) > -200, image.affine)[0]
        assert world_center(np.asarray(liver.dataobj) > 0, liver.affine)[0] > body + 25
        assert world_center(np.asarray(spleen.dataobj) > 0, spleen.affine)[0] < body - 50


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


# Nodules: size tells nothing about malignancy, the outline does


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


def test_the_same_seed_gives_the_same_nodules(nodules, tmp_path):
    again = phantom_dataset("nodules", tmp_path / "again", cases=2, seed=1)
    name = f"images/{rows(again)[1]['nodule']}.nii.gz"
    assert (again / name).read_bytes() == (nodules / name).read_bytes()
