"""Tiny lung data sets in the layouts that users have: two boxes of "air" in a body, right and left."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

LPS = np.diag([-2.0, -2.0, 3.0, 1.0])  # as CT scanners store
SHAPE = (12, 10, 8)
RADLEX = {"right": 1302, "left": 1326}


def chest(seed: int, modality: str = "CT") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An image and the masks of its two lungs; the patient's right is at low indices, as in LPS."""
    generator = np.random.default_rng(seed)
    masks = {side: np.zeros(SHAPE, np.uint8) for side in RADLEX}
    masks["right"][2:5, 3:8, 2:6] = 1
    masks["left"][7:10, 3:8, 2:7] = 1
    body, air = (40, -850) if modality == "CT" else (400, 30)
    image = np.where(masks["right"] + masks["left"], air, body) + generator.normal(0, 20, SHAPE)
    return image.round().astype(np.int16), masks


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def write_visceral(
    root: Path, patients: int = 3, modalities: tuple[str, ...] = ("CT_wb", "CTce_ThAb", "MRT1_wb", "MRT1cefs_Ab")
) -> Path:
    """Volumes in a folder per modality, masks of the lungs and the liver in one folder, a landmark file."""
    for number, modality in enumerate(modalities):
        for patient in range(patients):
            identity = 10000100 + 100 * number + patient
            name = f"{identity}_{number + 1}_{modality}"
            image, masks = chest(identity, modality[:2])
            save(root / "volumes" / modality / f"{name}.nii.gz", image)
            for side, radlex in RADLEX.items():
                save(root / "segmentations" / f"{name}_{radlex}_8.nii.gz", masks[side])
            save(root / "segmentations" / f"{name}_58_8.nii.gz", 1 - masks["right"])
            (root / "segmentations" / f"{name}_landmarks_8.fcsv").write_text("x")
    return root


def write_totalsegmentator(root: Path, cases: int = 3, scan: str = "ct") -> Path:
    """A folder per case, lobes as masks of their own (two lungs in MR), the trachea beside them."""
    for number in range(cases):
        image, masks = chest(number, "CT" if scan == "ct" else "MR")
        folder = root / f"s{number:04d}"
        save(folder / f"{scan}.nii.gz", image)
        parts = {"trachea": masks["right"] * 0}
        if scan == "ct":
            for side, cuts in (("right", {"upper": 5, "middle": 4, "lower": 2}), ("left", {"upper": 5, "lower": 2})):
                rest = masks[side].copy()
                for lobe, floor in cuts.items():
                    part = rest.copy()
                    part[..., :floor] = 0
                    parts[f"lung_{lobe}_lobe_{side}"] = part
                    rest -= part
        else:
            parts |= {f"lung_{side}": mask for side, mask in masks.items()}
        for name, mask in parts.items():
            save(folder / "segmentations" / f"{name}.nii.gz", mask)
    return root


def write_decathlon(root: Path, modalities: tuple[str, ...] = ("CT", "MR", "CT", "MR"), lungs: int = 2) -> Path:
    """``dataset.json`` with the modality in each entry; ``lungs`` is 1 for a single class."""
    entries = []
    for number, modality in enumerate(modalities):
        image, masks = chest(number, modality)
        files = {key: f"./{key}sTr/{modality.lower()}_{number}.nii.gz" for key in ("image", "label")}
        save(root / files["image"], image)
        save(root / files["label"], masks["right"] + lungs * masks["left"])
        entries.append({**files, "modality": modality})
    names = {1: ("lung",), 2: ("right lung", "left lung")}[lungs]
    labels = {str(value): name for value, name in enumerate(("background", *names))}
    content = {"name": "Lung", "modality": {"0": "CT or MR"}, "labels": labels, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def right_and_left() -> np.ndarray:
    """The label map of every chest: 1 right, 2 left."""
    _, masks = chest(0)
    return masks["right"] + 2 * masks["left"]
