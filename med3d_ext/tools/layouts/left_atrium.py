"""The 2018 left-atrium set in its own layout: a folder per patient with lgemri.nrrd and laendo.nrrd."""

from __future__ import annotations

from pathlib import Path

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.errors import InputError

SUFFIXES = (".nrrd", ".nii.gz", ".nii")


def is_left_atrium(folder: Path) -> bool:
    """Whether the folder holds no ``dataset.json`` but patients of this layout."""
    return not (folder / "dataset.json").exists() and bool(_images(folder))


def _images(folder: Path) -> list[Path]:
    # A patient's folder lies in the set's folder, or in "Training Set" or "Testing Set" there; no deeper search, or
    # every folder around the set would be taken for it.
    patterns = [f"{place}/lgemri{suffix}" for place in ("*", "*[sS]et/*") for suffix in SUFFIXES]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def read_left_atrium(folder: Path) -> Source:
    """The patients with a label; those of the challenge's test part may have none and are left out.

    Raises:
        InputError: when no patient has a label.
    """
    cases = []
    for image in _images(folder.resolve()):
        labels = [path for suffix in SUFFIXES if (path := image.with_name(f"laendo{suffix}")).is_file()]
        if labels:
            files = {"image": str(existing_file(image)), "label": str(existing_file(labels[0]))}
            cases.append({**files, "subject": image.parent.name})
    if not cases:
        raise InputError(f"'{folder}' has lgemri files and no laendo file next to any of them; add the labels.")
    # The challenge's labels are 0 and 255; copies with 0 and 1 exist.
    return Source(folder.name, {0: "background", 1: "left atrium", 255: "left atrium"}, {0: "MRI"}, cases)
