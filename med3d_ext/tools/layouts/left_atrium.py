"""The 2018 left-atrium set in its own layout: a folder per patient with lgemri.nrrd and laendo.nrrd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.errors import InputError

SUFFIXES = (".nrrd", ".nii.gz", ".nii")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


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
        raise InputError(f"'{folder}' has lgemri files and no laendo file beside any of them; add the labels.")
    # The challenge's labels are 0 and 255; copies with 0 and 1 exist.
    return Source(folder.name, {0: "background", 1: "left atrium", 255: "left atrium"}, {0: "MRI"}, cases)


def read_itk_header(path: str | os.PathLike) -> dict[str, Any]:
    """What :func:`med3d_ext.data.fingerprint.read_header` tells, of a file that ITK reads; voxels stay unread.

    Raises:
        InputError: when ITK knows no reader for the file or it is not 3D.
    """
    import itk

    try:
        reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except Exception as error:
        raise InputError(f"'{path}' cannot be read; it is damaged or not an image.") from error
    if reader.GetNumberOfDimensions() != 3:
        raise InputError(f"'{path}' has {reader.GetNumberOfDimensions()} dimensions; give a 3D volume.")
    directions = np.array([reader.GetDirection(axis) for axis in range(3)]).T
    return {
        "shape": [int(reader.GetDimensions(axis)) for axis in range(3)],
        "channels": int(reader.GetNumberOfComponents()),
        "spacing": [round(float(reader.GetSpacing(axis)), 6) for axis in range(3)],
        "orientation": "".join(nibabel.orientations.aff2axcodes(nibabel.affines.from_matvec(LPS_TO_RAS @ directions))),
    }
