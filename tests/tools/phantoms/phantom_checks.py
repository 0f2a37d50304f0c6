"""What the tests of the phantoms measure on a folder in Decathlon layout."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np


def pairs(folder: Path) -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    entries = json.loads((folder / "dataset.json").read_text())["training"]
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
