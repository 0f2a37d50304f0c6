"""Decathlon folders of a few tiny volumes for tests."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

SPACING = (1.0, 2.0, 3.0)


def write_domain(
    folder: Path,
    cases: int = 3,
    classes: tuple[str, ...] = ("organ",),
    channels: tuple[str, ...] = ("MRI",),
    seed: int = 0,
    title: str | None = None,
    spacings: tuple[tuple[float, float, float], ...] = (SPACING,),
) -> Path:
    """Write ``cases`` volumes; the label of each holds all classes. The same seed gives the same images."""
    rng = np.random.default_rng(seed)
    entries = []
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        affine = np.diag([*spacings[case % len(spacings)], 1.0])
        label = np.zeros((8, 9, 10), np.uint8)
        for value in range(1, len(classes) + 1):
            label[2 * value : 2 * value + 2, 3:6, 3:6] = value
        image = rng.normal(100, 20, (8, 9, 10, len(channels))).astype(np.float32)
        image = np.stack([image[..., channel] + 1000 * channel for channel in range(len(channels))], axis=-1)
        entry = {"image": f"./imagesTr/case_{case}.nii.gz", "label": f"./labelsTr/case_{case}.nii.gz"}
        nibabel.save(nibabel.Nifti1Image(np.squeeze(image), affine), folder / entry["image"])
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / entry["label"])
        entries.append(entry)
    content = {
        "name": title or folder.name,
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {str(number): name for number, name in enumerate(("background", *classes))},
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def change_dataset(folder: Path, **changes: object) -> None:
    """Replace entries of ``dataset.json``."""
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
