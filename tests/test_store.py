"""The store of volumes: read once by all bundles and runs, never wrong, never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import CastToTyped, Compose, Identityd, OneOf, RandScaleCropd, ScaleIntensityRanged

from med3d_ext.data import PreparedData, SeededDataset
from med3d_ext.errors import InputError
from med3d_ext.io import image_files, store
from med3d_ext.io.files import sha256
from med3d_ext.io.image_files import read_volume
from med3d_ext.io.store import ITEM, VOLUME, Store
from med3d_ext.tools.layouts.prepare import prepare_folder
from med3d_ext.transforms import LoadVolumed, RandTargetCropd


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files whose voxels were decoded."""
    names: list[str] = []
    real = image_files._nifti_voxels
    monkeypatch.setattr(
        image_files, "_nifti_voxels", lambda path, image: names.append(Path(path).name) or real(path, image)
    )
    return names


def dataset(items, kept, window=(-100, 200)) -> SeededDataset:
    """As the bundles build it."""
    steps = [
        LoadVolumed(store=kept),
        ScaleIntensityRanged("image", *window, 0.0, 1.0, clip=True),
        CastToTyped(["image", "label"], dtype=[torch.float16, torch.uint8]),
        OneOf([RandScaleCropd(["image", "label"], [1, 1, 0.3], [1, 1, 1]), Identityd(["image", "label"])]),
        RandTargetCropd(["image", "label"], [12, 10, 8]),
    ]
    return SeededDataset(items, Compose(steps), kept)


def epoch(data) -> list[np.ndarray]:
    return [np.stack([item["image"].numpy(), item["label"].numpy()]) for item in (data[i] for i in range(len(data)))]


def test_a_second_run_and_another_bundle_on_the_same_data_decode_nothing(liver_folder, tmp_path, decoded, monkeypatch):
    source, folder = liver_folder(cases=6), tmp_path / "store"
    monkeypatch.setenv("MED3D_STORE", str(folder))
    prepare_folder("lits", source, tmp_path / "one", 0)
    assert len(decoded) == 12  # each image and each label once, for the facts
    decoded.clear()
    moved = shutil.copytree(source, tmp_path / "moved")
    for number, (data, window) in enumerate([(source, (-100, 200)), (source, (-50, 50)), (moved, (-100, 200))]):
        kept = Store(folder)
        prepared = PreparedData("lits", str(data), str(tmp_path / f"run{number}"), store=kept)
        made = [epoch(dataset(prepared.training + prepared.validation, kept, window)) for _ in range(2)]
        np.testing.assert_array_equal(made[0], made[1])
        assert decoded == []


def test_without_a_store_the_items_are_the_same_and_everything_is_decoded(liver_folder, tmp_path, decoded):
    items = PreparedData("lits", str(liver_folder(cases=4)), str(tmp_path / "run")).training
    decoded.clear()
    expected = epoch(dataset(items, None))
    assert len(decoded) == 2 * len(items)
    for _ in range(2):
        for one, other in zip(epoch(dataset(items, Store(tmp_path / "store"))), expected):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize(("scaling", "channels"), [(None, ()), ((0.5, -3.0), ()), ((2.0, 0.0), (2,))])
def test_a_volume_comes_back_to_the_bit_with_its_header(dtype, scaling, channels, nifti, tmp_path):
    generator = np.random.default_rng(1)
    low, high = (-3000.0, 70000.0) if dtype in ("f4", "f8", "i4") else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    voxels = generator.uniform(low, high, (5, 6, 7, *channels)).astype(dtype)
    affine = np.array([[0, 2, 0, 1], [-1.5, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1.0]])
    path = nifti(tmp_path / "ct.nii.gz", voxels, affine, scaling=scaling)
    expected, header = read_volume(path)
    for _ in range(2):
        found, stated, _ = Store(tmp_path / "store").image(path)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype and found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(stated.affine, header.affine)
        assert (stated.shape, stated.spacing, stated.is_oriented) == (header.shape, header.spacing, header.is_oriented)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a voxel": lambda path: path.write_bytes(path.read_bytes().replace(b"\x2a\0\x2a\0", b"\x2b\0\x2a\0", 1)),
    "text": lambda path: path.write_text("not a volume"),
    "foreign": lambda path: torch.save({"key": "another", "entry": {"voxels": torch.zeros(3)}}, path),
    "older": lambda path: torch.save({"voxels": torch.zeros(3)}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_entry_is_made_again(damage, tmp_path, caplog):
    kept, made = Store(tmp_path), []

    def make():
        made.append(1)
        return {"voxels": torch.full((4, 4, 4), 42, dtype=torch.int16)}

    for kind in (VOLUME, ITEM):
        kept.get(kind, "key", make)
        (path,) = tmp_path.glob(f"*.{kind}.pt")
        before = path.read_bytes()
        DAMAGES[damage](path)
        assert path.read_bytes() != before
        assert (kept.get(kind, "key", make)["voxels"] == 42).all()
        assert "is made again" in caplog.text
        assert (Store(tmp_path).get(kind, "key", make)["voxels"] == 42).all()
    assert len(made) == 4


def test_an_entry_is_read_to_its_checksums_once_in_a_run(tmp_path, monkeypatch):
    reads, real = [], zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: reads.append(1) or real(self))
    Store(tmp_path).get(ITEM, "key", lambda: {"x": torch.ones(3)})
    kept = Store(tmp_path)
    for _ in range(3):
        kept.get(ITEM, "key", lambda: {"x": torch.zeros(3)})
    assert len(reads) == 1


def fill(kept: Store, kind: str, name: str, kilobytes: int = 100) -> None:
    kept.get(kind, name, lambda: {"x": torch.zeros(kilobytes * 1000, dtype=torch.uint8)})


def age(kept: Store, kind: str, name: str, seconds: float) -> None:
    stamp = kept._began - seconds
    os.utime(kept.path(kind, name), (stamp, stamp))


def test_what_was_used_the_longest_time_ago_goes_first(tmp_path):
    kept = Store(tmp_path, 0.00035)
    for number in range(3):
        fill(kept, ITEM, f"old {number}")
        age(kept, ITEM, f"old {number}", 100 - number)
    fill(kept, ITEM, "old 0")  # used again
    fill(kept, ITEM, "new")
    there = [name for name in ("old 0", "old 1", "old 2", "new") if kept.path(ITEM, name).exists()]
    assert there == ["old 0", "old 2", "new"]
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= kept.limit


def test_a_run_pushes_out_decoded_files_but_neither_its_own_items_nor_other_data_on_the_disk(
    tmp_path, caplog, monkeypatch
):
    kept = Store(tmp_path, 0.00035)
    fill(kept, VOLUME, "file")
    for number in range(5):
        fill(kept, ITEM, f"case {number}")
    assert not kept.path(VOLUME, "file").exists()
    assert [kept.path(ITEM, f"case {number}").exists() for number in range(5)] == [True] * 3 + [False] * 2
    assert caplog.text.count("do not fit") == 1
    full = Store(tmp_path / "full")  # its disk, nearly
    usage = shutil.disk_usage(tmp_path)._replace(free=int(store.RESERVE))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    fill(full, ITEM, "case")
    assert entries(full.folder) == [] and caplog.text.count("do not fit") == 2


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    kept = Store(tmp_path)
    for name, seconds in (("old.part", 2 * store.LEFTOVER), ("young.part", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (kept._began - seconds,) * 2)
    fill(kept, ITEM, "case")
    assert sorted(path.name for path in tmp_path.glob("*.part")) == ["young.part"]


def _fill_many(folder: str) -> None:
    logging.disable()
    kept = Store(folder, 0.001)
    for number in range(30):
        found = kept.get(ITEM, f"{number % 15}", lambda n=number: {"x": torch.full((100_000,), n % 15).to(torch.uint8)})
        assert (found["x"] == number % 15).all()


def test_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill_many, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert list(tmp_path.glob("*.part")) == [] and len(entries(tmp_path)) <= 15


def test_where_the_store_is(tmp_path, monkeypatch):
    for name in ("MED3D_STORE", "MED3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().folder == tmp_path / ".cache" / "med3d_ext" / "store" and Store().limit == 20e9
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Store().folder == tmp_path / "xdg" / "med3d_ext" / "store"
    monkeypatch.setenv("MED3D_CACHE", str(tmp_path / "cache"))
    assert Store().folder == tmp_path / "cache" / "store"
    monkeypatch.setenv("MED3D_STORE", "~/own")
    monkeypatch.setenv("MED3D_STORE_GB", "1.5")
    assert Store().folder == tmp_path / "own" and Store().limit == 1.5e9
    assert Store(tmp_path / "given").folder == tmp_path / "given"
    for wrong in ("many", "-1", "nan"):
        monkeypatch.setenv("MED3D_STORE_GB", wrong)
        with pytest.raises(InputError, match="MED3D_STORE_GB must be a number"):
            Store()


def test_a_store_inside_the_data_is_refused(liver_folder, tmp_path):
    source = liver_folder()
    with pytest.raises(InputError, match="is in the data"):
        PreparedData("lits", str(source), str(tmp_path / "run"), store=Store(source / "store"))
    assert not (source / "store").exists()


@pytest.mark.parametrize("kind", ["mhd", "nhdr", "hdr"])
def test_an_image_whose_voxels_are_in_another_file_is_known_by_both(kind, tmp_path):
    """Two scans of one geometry have the same header."""
    digests = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        voxels = np.full((3, 4, 5), number, np.int16)
        if kind == "hdr":
            nibabel.save(nibabel.Nifti1Pair(voxels, np.eye(4)), folder / "ct.hdr")
            path = folder / "ct.hdr"
        else:
            itk = pytest.importorskip("itk")
            path = folder / f"ct.{kind}"
            itk.imwrite(itk.image_from_array(voxels), str(path))
        digests.add(sha256(path))
        found, *_ = Store(tmp_path / "store").image(path)
        assert (found == number).all()
    assert len(digests) == 2
