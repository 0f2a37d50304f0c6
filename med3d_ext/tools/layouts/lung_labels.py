"""The classes of a lung label map, and one label map from one mask per organ or lobe."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.files import file_stamp, write_atomically
from med3d_ext.io.grids import Grid, copy_geometry, grid_of_file, on_image_grid
from med3d_ext.transforms.load import load_volume
from med3d_ext.transforms.values import whole_values

RIGHT, LEFT, EITHER = 1, 2, 3
LUNGS = {0: "background", RIGHT: "right lung", LEFT: "left lung"}
LUNG, LOBE, LOBES = {"lung", "lungs"}, {"lobe"}, {"upper", "middle", "lower"}  # other organs have lobes of other names
SIDES = {"right": RIGHT, "r": RIGHT, "left": LEFT, "l": LEFT}


def lung_classes(
    names: Mapping[int, str], num_classes: int, where: str | os.PathLike
) -> tuple[dict[str, str], dict[str, int]]:
    """Classes to train, and the map from every label value to its class.

    Classes named after a lung or a lobe count, all others become background.

    Args:
        names: label value to class name.
        num_classes: 2 for background and lung, 3 for background, right and left lung.
        where: the folder, for the error.

    Raises:
        InputError: ``num_classes`` is neither, no class is a lung, or three classes are asked of unsided ones.
    """
    check_num_classes(num_classes)
    sides = {value: side_of(name) for value, name in names.items()}
    found = set(sides.values()) - {0}
    stated = ", ".join(name for value, name in names.items() if value)
    if not found:
        raise InputError(f"'{where}' has no class that is a lung ({stated}); name it so under 'labels'.")
    if num_classes == 2:
        return {"0": "background", "1": "lung"}, {str(value): int(side > 0) for value, side in sides.items()}
    if found != {RIGHT, LEFT}:
        raise InputError(f"num_classes 3 needs right and left lung as separate classes, '{where}' has {stated}; use 2.")
    return {str(value): name for value, name in LUNGS.items()}, {str(value): side for value, side in sides.items()}


def check_num_classes(num_classes: int) -> None:
    """Refuse what is neither 2 nor 3."""
    if num_classes not in (2, 3):
        raise InputError(f"num_classes must be 2 (lung) or 3 (right and left lung), got {num_classes!r}.")


def side_of(name: str) -> int:
    """``RIGHT``, ``LEFT``, ``EITHER`` or 0 for a class that is no lung: of names as "left lung" or "Lung_L"."""
    words = re.findall(r"[a-z]+", name.lower())
    if not LUNG & set(words) and not (LOBE & set(words) and LOBES & set(words)):
        return 0
    return next((SIDES[word] for word in words if word in SIDES), EITHER)


def merge_masks(image: str, parts: Mapping[str, int], label: Path) -> bool:
    """Write one label map on the image's grid from masks; what the same masks gave before is left as it is.

    Args:
        image: the image's file.
        parts: mask file to the value of its voxels.
        label: the file to write.

    Returns:
        whether there is any foreground.

    Raises:
        InputError: when a mask is damaged, is elsewhere than the image (:func:`on_image_grid`) or holds fractions.
    """
    made_of = [file_stamp(image), *((part, value, file_stamp(part)) for part, value in parts.items())]
    stamp = hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]
    known = _note(label)
    if known is not None and known[0] == stamp:
        return known[1] > 0
    grid = grid_of_file(image)
    merged = np.zeros(grid.shape, np.uint8)
    for part, value in parts.items():
        volume = load_volume(part)
        own = Grid.of(part, volume.shape[1:], volume.affine, "mask")
        merged[whole_values(on_image_grid(volume[0].numpy(), own, grid), part, "mask") > 0] = value
    header = nibabel.Nifti1Image(merged, None).header
    copy_geometry(header, nibabel.load(image).header)  # type: ignore[attr-defined]
    nifti = nibabel.Nifti1Image(merged, None, header)
    nifti.header["descrip"] = f"{stamp} {np.count_nonzero(merged)}".encode()
    with write_atomically(label) as file:
        file.write(gzip.compress(nifti.to_bytes(), 1, mtime=0))
    return bool(merged.any())


def _note(label: Path) -> tuple[str, int] | None:
    """Of a label map that was written before: a digest of its masks, and its foreground voxels."""
    if not label.is_file():
        return None
    try:
        header: Any = nibabel.load(label).header  # type: ignore[attr-defined]
        digest, count = header["descrip"].item().decode().split()
        return digest, int(count)
    except Exception:  # a file of another origin, or a damaged one
        return None
