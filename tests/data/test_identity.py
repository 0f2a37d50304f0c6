"""What a sample is made of decides its digest, its place in the cache and whether a training may resume on it."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, RandScaleIntensityd, ScaleIntensityRanged

from med3d_ext.data import loader as module
from med3d_ext.data.fingerprint import changed_cases, digests, item_digest
from med3d_ext.data.loader import SeededDataset
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.prepare import PREPARE, prepare
from med3d_ext.transforms import LoadVolumed, MergeLabelsd


def keep_time(path: Path, change) -> None:
    """Change a file as `cp -p` or rsync does: the time of writing (and here the size) stays."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_a_byte(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(bytes(content))


def exchange(path: Path) -> None:
    """Liver becomes tumor and tumor liver: of an uncompressed file, so that its size stays."""
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    voxels = content[352:]
    content[352:] = np.where(voxels > 0, 3 - voxels, 0)
    path.write_bytes(content.tobytes())


def item_of(folder: Path, number: int = 0, **more) -> dict:
    files = {key: str(folder / f"{key}sTr" / f"liver_{number}.nii") for key in ("image", "label")}
    return {**files, "domain": "liver", **more}


@pytest.mark.parametrize("seed", range(6))
def test_a_change_of_a_bit_in_any_file_changes_the_digest_and_a_new_name_does_not(liver_folder, tmp_path, seed):
    generator = random.Random(seed)
    source = liver_folder(cases=2, suffix=".nii")
    item = item_of(source, mask=str(source / "labelsTr" / "liver_1.nii"))
    before = item_digest(item)
    moved = shutil.copytree(source, tmp_path / "moved")
    elsewhere = {key: value.replace(str(source), str(moved)) for key, value in item.items()}
    assert item_digest(elsewhere) == before
    path = Path(item[generator.choice(("image", "label", "mask"))])
    keep_time(path, lambda path: flip_a_byte(path, generator))
    assert item_digest(item) != before
    assert item_digest(elsewhere) == before


def test_stated_hashes_stand_for_the_files_and_are_no_further_content(liver_folder):
    item = item_of(liver_folder(suffix=".nii"))
    stated = {**item, "sha256": "0" * 64, "label_sha256": "1" * 64}
    assert item_digest(stated) != item_digest(item)
    assert item_digest({**stated, "label_sha256": "2" * 64}) != item_digest(stated)
    gone = {**stated, "image": "gone.nii", "label": "gone_label.nii"}  # stated content counts without the file, too
    assert item_digest(gone) == item_digest(stated) != item_digest({**gone, "sha256": "3" * 64})
    for change in ({"channel": 1}, {"domain": "spleen"}, {"modality": "MR"}, {"label": None}):
        assert item_digest({**item, **change}) != item_digest(item)
    rated = {"image": item["image"], "label": 1, "mask": item["label"], "sha256": "0" * 64, "label_sha256": "1" * 64}
    assert item_digest({**rated, "label_sha256": "2" * 64}) != item_digest(rated)
    assert item_digest({**rated, "label": 0}) != item_digest(rated)


def test_the_cases_of_two_trainings_are_compared_by_content_use_and_number(liver_folder, tmp_path):
    source = liver_folder(cases=3, suffix=".nii")
    moved = shutil.copytree(source, tmp_path / "renamed")
    items, others = ([item_of(folder, number) for number in range(3)] for folder in (source, moved))
    for item in others:
        item["domain"] = "renamed"
    assert changed_cases(digests(training=items), digests(training=others[::-1])) == []
    exchange(Path(others[1]["label"]))
    assert changed_cases(digests(training=items), digests(training=others)) == ["liver_1.nii (training)"]
    assert changed_cases(digests(training=items), digests(training=items[:2])) == ["liver_2.nii (training)"]
    assert changed_cases(digests(training=items), digests(training=[*items, items[0]])) == ["liver_0.nii (training)"]
    validated = digests(training=items[:2], validation=items[2:])
    assert changed_cases(digests(training=items), validated) == ["liver_2.nii (training)", "liver_2.nii (validation)"]


# The cache


def make(items, cache_dir, window=(-100, 200), label_map=None) -> SeededDataset:
    steps = [LoadVolumed(), ScaleIntensityRanged("image", *window, 0.0, 1.0), RandScaleIntensityd("image", 0.5)]
    if label_map is not None:
        steps.insert(1, MergeLabelsd("label", label_map={"liver": label_map}))
    return SeededDataset(items, Compose(steps), str(cache_dir))


def test_a_corrected_label_is_computed_anew_and_a_moved_case_is_not(liver_folder, tmp_path):
    source = liver_folder(suffix=".nii")
    cache = tmp_path / "cache"
    first = make([item_of(source)], cache)[0]["label"].numpy().copy()
    moved = shutil.copytree(source, tmp_path / "moved")
    again = make([item_of(moved)], cache)[0]
    assert len(list(cache.glob("*.pt"))) == 1
    assert again["image"].meta["filename_or_obj"] == item_of(moved)["image"]
    keep_time(Path(item_of(source)["label"]), exchange)
    corrected = make([item_of(source)], cache)[0]["label"].numpy()
    assert (first == 1).sum() == (corrected == 2).sum() > 0
    assert len(list(cache.glob("*.pt"))) == 2


def test_parameters_of_the_deterministic_transforms_and_the_version_are_in_the_name(
    liver_folder, tmp_path, monkeypatch
):
    items = [item_of(liver_folder(suffix=".nii"))]
    maps = [{"0": 0, "1": 1, "2": 1}, {"0": 0, "1": 1, "2": 2}]
    for number, options in enumerate([{}, {"window": (-100, 201)}, {"label_map": maps[0]}, {"label_map": maps[1]}], 1):
        for _ in range(2):
            _ = make(items, tmp_path, **options)[0]
        assert len(list(tmp_path.glob("*.pt"))) == number
    monkeypatch.setattr(module, "VERSION", "2")
    _ = make(items, tmp_path)[0]
    assert len(list(tmp_path.glob("*.pt"))) == number + 1


def test_a_file_that_changes_while_a_run_goes_on_is_refused_by_name(liver_folder, tmp_path):
    source = liver_folder(cases=3, suffix=".nii")
    data = PreparedData("lits", str(source), str(tmp_path / "run"))
    dataset = make(data.training, tmp_path / "cache")
    path = Path(data.training[1]["label"])
    _ = dataset[0]
    keep_time(path, exchange)
    with pytest.raises(InputError, match=f"'{path}' changed after the run had begun"):
        _ = dataset[1]
    _ = dataset[0]  # it is in the cache as it was


# Prepared data


def test_a_corrected_label_of_the_same_size_and_time_changes_the_identity_and_is_read_again(liver_folder, tmp_path):
    source = liver_folder(cases=12, suffix=".nii")
    first = PreparedData("lits", str(source), str(tmp_path / "run"))
    counts = {case["image"]: case["labels"] for case in first.cases["Task03_Liver"]}
    keep_time(Path(first.training[0]["label"]), exchange)
    second = PreparedData("lits", str(source), str(tmp_path / "run"))
    assert second.identity != first.identity
    (changed,) = [case for case in second.cases["Task03_Liver"] if case["labels"] != counts[case["image"]]]
    assert changed["image"] == first.training[0]["image"]


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("split", ["training", "validation", "test"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_prepared_by_hand_whose_files_changed_is_refused_by_name(liver_folder, tmp_path, key, split, moved):
    source = liver_folder(cases=12, suffix=".nii")
    PREPARE["lits"](source, source)
    if moved:
        source = source.rename(tmp_path / "moved")
    item = PreparedData("lits", str(source), str(tmp_path / "run")).items(split)[0]
    keep_time(Path(item[key]), lambda path: flip_a_byte(path, random.Random(1)))
    with pytest.raises(InputError, match=f"'{item[key]}' changed after .* was prepared; prepare it again"):
        PreparedData("lits", str(source), str(tmp_path / "run"))


def test_a_touched_file_is_no_changed_file_and_an_older_list_states_no_hash_of_the_label(liver_folder, tmp_path):
    source = liver_folder(cases=12, suffix=".nii")
    PREPARE["lits"](source, source)
    first = PreparedData("lits", str(source), str(tmp_path / "run"))
    path = source / "datalist.json"
    content = json.loads(path.read_text())
    for item in content["training"]:
        del item["label_sha256"]
    path.write_text(json.dumps(content))
    for item in first.training:
        Path(item["label"]).touch()
    second = PreparedData("lits", str(source), str(tmp_path / "run"))
    assert second.identity == first.identity
    assert second.training == first.training


def test_a_list_of_cases_that_changed_after_the_preparation_is_refused(liver_folder, nodule_folder, tmp_path):
    source = liver_folder(cases=12, suffix=".nii")
    prepare("lits", str(source))
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**content, "training": content["training"][1:]}))
    with pytest.raises(InputError, match="dataset.json' changed after"):
        PreparedData("lits", str(source), str(tmp_path / "run"))
    source = nodule_folder()
    prepare("nodules", str(source), output=str(tmp_path / "out"))
    table = (source / "nodules.csv").read_text()
    (source / "nodules.csv").write_text(table.replace("n0,0,1", "n0,0,5"))  # a corrected rating
    with pytest.raises(InputError, match="nodules.csv' changed after"):
        PreparedData("nodules", str(tmp_path / "out"), str(tmp_path / "run"))
    shutil.rmtree(source / "masks")
    (source / "nodules.csv").unlink()  # a prepared folder may be without its source


def test_masks_that_were_merged_into_label_maps_count_as_their_sources(tmp_path, nifti):
    source = tmp_path / "patients"
    for number in range(3):
        voxels = np.zeros((12, 12, 12), np.uint8)
        for side, place in (("right", 2), ("left", 7)):
            mask = voxels.copy()
            mask[place : place + 3, 3:8, 3:8] = 1
            nifti(source / f"s{number}" / "segmentations" / f"lung_{side}.nii", mask, np.eye(4))
        nifti(
            source / f"s{number}" / "ct.nii", np.random.default_rng(number).integers(-900, 90, (12, 12, 12), np.int16)
        )
    prepare("lung", str(source), output=str(tmp_path / "out"))
    assert PreparedData("lung", str(tmp_path / "out"), str(tmp_path / "run")).training
    mask = source / "s0" / "segmentations" / "lung_left.nii"
    keep_time(mask, lambda path: nifti(path, np.roll(np.asarray(voxels) + 1, 1) * 0 + 1, np.eye(4)))
    with pytest.raises(InputError, match="lung_left.nii' changed after"):
        PreparedData("lung", str(tmp_path / "out"), str(tmp_path / "run"))
