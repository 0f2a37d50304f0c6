"""What many tests need: one thread, small NIfTI files, a small liver folder, the folder of real volumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def save_nifti(
    path: str | os.PathLike,
    voxels: np.ndarray,
    affine: np.ndarray | None = None,
    pixdim: tuple[float, float, float] | None = None,
    scaling: tuple[float, float] | None = None,
) -> Path:
    """Write a NIfTI file, making its folder.

    Args:
        path: the file.
        voxels: stored values.
        affine: the sform. Defaults to None: the identity, or with ``pixdim`` neither sform nor qform.
        pixdim: voxel sizes as they stand in the header, 0 and NaN included. Defaults to None: those of the affine.
        scaling: slope and intercept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None and pixdim is None else None)
    if affine is not None:
        image.header.set_zooms([*nibabel.affines.voxel_sizes(affine), 1.0][: voxels.ndim])
        image.header.set_sform(affine, code=1)
        image = nibabel.Nifti1Image(voxels, None, image.header)
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
    content = bytearray(image.to_bytes())
    if pixdim is not None:
        content[80:92] = np.asarray(pixdim, "<f4").tobytes()  # nibabel itself would not write a 0
    with nibabel.openers.ImageOpener(path, "wb") as file:
        file.write(bytes(content))
    return path


def liver_case(seed: int, shape: tuple[int, int, int] = (20, 18, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A body with a liver (1) that holds a tumor (2): HU as int16 and labels as uint8."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), axis=-1)
    center = np.array(shape) / 2 + generator.uniform(-1, 1, 3)
    radius = np.linalg.norm((grid - center) / (np.array(shape) / 4), axis=-1)
    label = (radius < 1).astype(np.uint8) + (radius < 0.4).astype(np.uint8)
    image = np.array([-50, 110, 60])[label] + generator.normal(0, 15, shape)
    image[:2] = -1000  # air
    image[-1] = 900  # bone
    return image.round().astype(np.int16), label


@pytest.fixture(scope="session", autouse=True)
def store_folder(tmp_path_factory: pytest.TempPathFactory):
    """Nothing is taken from or left in the user's store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MED3D_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def nifti() -> Callable[..., Path]:
    """:func:`save_nifti`."""
    return save_nifti


@pytest.fixture
def liver_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small Decathlon liver folder: ``make(name, cases, suffix)``."""

    def make(name: str = "Task03_Liver", cases: int = 3, suffix: str = ".nii.gz") -> Path:
        root = tmp_path / name
        entries = []
        for number in range(cases):
            image, label = liver_case(number)
            affine = np.diag([1.0 + 0.1 * number, 1.5, 2.0 + number, 1.0])
            files = {key: f"./{key}sTr/liver_{number}{suffix}" for key in ("image", "label")}
            save_nifti(root / files["image"], image, affine)
            save_nifti(root / files["label"], label, affine)
            entries.append(files)
        labels = {"0": "background", "1": "liver", "2": "cancer"}
        content = {"name": "liver", "labels": labels, "modality": {"0": "CT"}, "training": entries}
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make


def nodule_cube(seed: int, radius: float, edge: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """A ball in lung: HU as int16 and its mask as uint8."""
    grid = np.stack(np.meshgrid(*[np.arange(edge) - (edge - 1) / 2] * 3, indexing="ij"), axis=-1)
    mask = (np.linalg.norm(grid, axis=-1) < radius).astype(np.uint8)
    image = np.where(mask > 0, 40, -850) + np.random.default_rng(seed).normal(0, 20, mask.shape)
    return image.round().astype(np.int16), mask


@pytest.fixture
def nodule_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small folder of rated nodules: ``make(name, ratings, scans)``; malignant ones are larger by a little."""

    def make(
        name: str = "nodules",
        ratings: tuple[str | int, ...] = (1, 5, 2, 4, 3, 5, 1, 4, 2, 5, 3, 4),
        scans: tuple[int, ...] | None = None,
    ) -> Path:
        root = tmp_path / name
        rows = ["nodule,scan,malignancy"]
        for number, rating in enumerate(ratings):
            image, mask = nodule_cube(number, radius=2.5 + 0.1 * number + (str(rating) > "3"))
            save_nifti(root / "images" / f"n{number}.nii.gz", image)
            save_nifti(root / "masks" / f"n{number}.nii.gz", mask)
            rows.append(f"n{number},{number if scans is None else scans[number]},{rating}")
        (root / "nodules.csv").write_text("\n".join(rows) + "\n")
        return root

    return make


@pytest.fixture
def real_data() -> Path:
    """Folder of real volumes: ``$MED3D_DATA``, else ``../shared/data`` beside the repository; skips without it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MED3D_DATA", default))
    if not (folder / "msd").is_dir():
        pytest.skip(f"needs real volumes in {folder} (set MED3D_DATA)")
    return folder
