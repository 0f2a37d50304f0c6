"""The embedded data: same seed, same bytes; true geometry; no shortcut to the organs."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom_checks import best_interval_dice, pairs, world_center
from scipy.ndimage import binary_erosion

from med3d_ext.errors import InputError
from med3d_ext.tools import cli
from med3d_ext.tools.phantoms import dataset
from med3d_ext.tools.phantoms.dataset import phantom_dataset


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


def test_two_cases_differ_in_shape_and_contrast_of_the_liver(lits):
    volumes, means = [], []
    for image, label in pairs(lits):
        liver = np.asarray(label.dataobj) > 0
        volumes.append(liver.sum() * abs(np.linalg.det(label.affine)) / 1e6)
        means.append(np.asarray(image.dataobj)[np.asarray(label.dataobj) == 1].mean())
    assert np.ptp(volumes) > 0.15  # liters
    assert 0.6 < min(volumes) < max(volumes) < 2
    assert np.ptp(means) > 20


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


def test_the_lungs_lie_above_the_liver_in_every_orientation(lits):
    for image, label in pairs(lits):
        values = np.asarray(image.dataobj)
        lungs = binary_erosion((values > -920) & (values < -780))  # the skin's blurred edge is thinner
        liver = world_center(np.asarray(label.dataobj) > 0, label.affine)
        assert world_center(lungs, image.affine)[2] > liver[2] + 20


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


def test_hu_cover_air_lung_fat_soft_tissue_and_bone(lits):
    for image, _ in pairs(lits):
        values = np.asarray(image.dataobj)
        shares = np.histogram(values, [-1100, -950, -700, -150, -60, 0, 200, 300, 2600])[0] / values.size
        assert min(shares[[0, 1, 3, 5, 7]]) > 0.004  # air, lung, fat, soft tissue, bone


def test_monai_reads_the_layout(lits):
    from monai.data import load_decathlon_datalist

    items = load_decathlon_datalist(str(lits / "dataset.json"), True, "training", str(lits))
    assert len(items) == 6
    assert all(Path(item[key]).is_file() for item in items for key in ("image", "label"))
    content = json.loads((lits / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "tumor"}
    assert content["numTraining"] == 6


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_args, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "write_decathlon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom_dataset("lits", tmp_path / "lits", cases=1)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_folder_is_used_again_untouched(lits):
    times = {path: path.stat().st_mtime_ns for path in lits.rglob("*")}
    assert phantom_dataset("lits", lits, cases=6, seed=3) == lits
    assert {path: path.stat().st_mtime_ns for path in lits.rglob("*")} == times


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


def test_a_failed_rename_is_not_taken_for_success(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(refused\)"):
        phantom_dataset("lits", tmp_path / "lits", cases=1)
    assert list(tmp_path.iterdir()) == []


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
