"""Data sets of the smallest size that trains: one for each bundle, written in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (24, 22, 20)
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def body(seed: int, shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A CT (HU, int16) of air, fat, bone and a ball in a ball, and the balls as labels 1 and 2 (uint8)."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), axis=-1)
    center = np.array(shape) / 2 + generator.uniform(-1, 1, 3)
    radius = np.linalg.norm((grid - center) / (np.array(shape) / 4), axis=-1)
    label = (radius < 1).astype(np.uint8) + (radius < 0.5).astype(np.uint8)
    image = np.array([-120, 110, 60])[label] + generator.normal(0, 15, shape)
    image[:2], image[-1] = -1000, 900
    return image.round().astype(np.int16), label


def decathlon(
    folder: Path,
    cases: int = 4,
    labels: Sequence[str] = ("background", "liver", "cancer"),
    modality: str = "CT",
    shape: Sequence[int] = SHAPE,
) -> Path:
    """A folder in the Decathlon's layout with cases ``case_0``, ..."""
    entries = []
    for number in range(cases):
        image, label = body(number, shape)
        files = {kind: f"./{kind}sTr/case_{number}.nii.gz" for kind in ("image", "label")}
        save(folder / files["image"], image)
        save(folder / files["label"], np.minimum(label, len(labels) - 1).astype(np.uint8))
        entries.append(files)
    names = {str(value): name for value, name in enumerate(labels)}
    content = {"name": folder.name, "labels": names, "modality": {"0": modality}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def images(folder: Path, cases: int = 3, first: int = 100, shape: Sequence[int] = SHAPE) -> Path:
    """A folder of images without labels: ``scan_0.nii.gz``, ..."""
    for number in range(cases):
        save(folder / f"scan_{number}.nii.gz", body(first + number, shape)[0])
    return folder


def nodules(folder: Path, cases: int = 12, edge: int = 14) -> Path:
    """A folder of rated nodules: ``nodules.csv``, ``images/``, ``masks/``."""
    rows = ["nodule,scan,malignancy"]
    for number in range(cases):
        rating = 1 + 4 * (number % 2)
        grid = np.stack(np.meshgrid(*[np.arange(edge) - (edge - 1) / 2] * 3, indexing="ij"), axis=-1)
        mask = (np.linalg.norm(grid, axis=-1) < 2.5 + (rating > 3)).astype(np.uint8)
        image = np.where(mask > 0, 40, -850) + np.random.default_rng(number).normal(0, 20, mask.shape)
        save(folder / "images" / f"n{number}.nii.gz", image.round().astype(np.int16), np.eye(4))
        save(folder / "masks" / f"n{number}.nii.gz", mask, np.eye(4))
        rows.append(f"n{number},{number},{rating}")
    (folder / "nodules.csv").write_text("\n".join(rows) + "\n")
    return folder


BUNDLES: dict[str, Callable[[Path], Path]] = {
    "lits_coarse": lambda folder: decathlon(folder),
    "lits_fine": lambda folder: decathlon(folder),
    "lung_segmentation": lambda folder: decathlon(folder, labels=("background", "lung")),
    "pretrain_3dseg8": lambda folder: decathlon(folder, labels=("background", "a", "b"), modality="MRI"),
    "nodule_classification": lambda folder: nodules(folder),
}
"""A maker of fitting data for each bundle."""
