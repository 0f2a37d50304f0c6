"""Images with a file for each channel, as nnU-Net keeps them: joined to one 4D file, which everything else reads."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from med3d_ext.data.fingerprint import read_header
from med3d_ext.errors import InputError
from med3d_ext.io.files import file_stamp, write_atomically
from med3d_ext.io.store import compact
from med3d_ext.transforms.load import load_volume

NUMBERED = re.compile(r"(.+)_(\d{4})")  # a file's name without its format


def join_channels(files: Sequence[str], target: Path) -> None:
    """Write 3D files of one grid as the channels of one 4D NIfTI file; what the same files gave before stays as it is.

    Raises:
        InputError: a file is refused, see :func:`load_volume`, or has another grid than the first.
    """
    stamp = hashlib.sha256(repr([file_stamp(file) for file in files]).encode()).hexdigest()[:32]
    if _stamp_of(target) == stamp:
        return
    volumes = [load_volume(file) for file in files]
    first = volumes[0]
    for file, volume in zip(files, volumes):
        if volume.shape != first.shape or not np.allclose(volume.affine, first.affine, atol=1e-3):
            raise InputError(
                f"'{file}' has another grid than '{files[0]}'; the channels of a case must have one: resample it."
            )
    voxels = compact(np.stack([volume[0].numpy() for volume in volumes], axis=-1))
    nifti = nibabel.Nifti1Image(voxels, first.affine.numpy())
    nifti.header["descrip"] = stamp.encode()
    with write_atomically(target) as stream:
        stream.write(gzip.compress(nifti.to_bytes(), 1, mtime=0))


def _stamp_of(target: Path) -> str | None:
    try:
        return str(nibabel.load(target).header["descrip"].item().decode())  # type: ignore[attr-defined, index]
    except Exception:  # it is missing, of another origin or damaged
        return None


def join_cases(
    items: Sequence[Mapping[str, Any]], channels: int, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Cases to segment with a network of several channels: those of a file for each channel are joined in ``folder``.

    Args:
        items: ``image`` and ``case``, its name, of each file.
        channels: the network's.
        folder: where joined files are written.

    Returns:
        the cases, and the names of those that cannot be joined, each with a sentence that says why.
    """
    found: dict[str, dict[int, str]] = {}
    whole, faults = [], {}
    for item in items:
        numbered = NUMBERED.fullmatch(item["case"])
        if numbered is None or _is_4d(item["image"]):
            whole.append(dict(item))
        else:
            found.setdefault(numbered[1], {})[int(numbered[2])] = item["image"]
    for name, files in found.items():
        if sorted(files) != list(range(channels)):
            known = ", ".join(f"{number:04d}" for number in sorted(files))
            faults[name] = (
                f"'{name}' has the channels {known}, and the network takes {channels}, from 0000 on; give all of them, "
                "or one 4D file."
            )
            continue
        target = folder / f"{name}.nii.gz"
        try:
            join_channels([files[number] for number in range(channels)], target)
        except InputError as error:
            faults[name] = str(error)
            continue
        whole.append({"image": str(target), "case": name, "source": files[0]})
    return whole, faults


def _is_4d(image: str) -> bool:
    """Whether a file has all channels, whatever its name ends with; a damaged one is refused where it is read."""
    try:
        return bool(read_header(image)["channels"] > 1)
    except InputError:
        return False
