"""What a data set looks like: spacing, shapes, intensities, classes and hashes of its cases, and a summary of them.

The first pass reads headers alone (seconds for hundreds of files); the second reads every voxel once and is cached by
file size, times and inode, so that a second call costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from med3d_ext.errors import Faults, InputError
from med3d_ext.io import image_files
from med3d_ext.io.files import file_stamp, sha256
from med3d_ext.io.store import store_in_use
from med3d_ext.transforms.load import LoadVolumed, usable_spacing
from med3d_ext.transforms.sampling import target_box

PERCENTILES = (0.5, 50.0, 99.5)
SCAN = 2  # raise it when the second pass finds something else in the same files
NO_LABEL_MAP: dict[str, Any] = {"label_sha256": None, "labels": {}, "target_box": None}


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Shape (voxels), spacing (mm, x y z of the stored axes) and orientation ("RAS") from an image's header alone.

    Raises:
        InputError: when the file cannot be read or is not 3D (4D is allowed: channels last).
    """
    header = image_files.read_header(path)
    if len(header.shape) not in (3, 4):
        raise InputError(f"'{path}' is not a 3D volume (its shape is {list(header.shape)}); give a volume of slices.")
    usable = usable_spacing(header.spacing)
    return {
        "shape": list(header.shape[:3]),
        "channels": header.shape[3] if len(header.shape) == 4 else 1,
        "spacing": [round(value, 6) for value in header.spacing] if usable else None,
        "orientation": "".join(nibabel.aff2axcodes(header.affine)) if usable else None,
    }


def label_map(case: Mapping[str, Any]) -> str | None:
    """The file of a case's label map: its label, or where that is a class its ``mask``; None if there is none."""
    return case["label"] if isinstance(case.get("label"), str) else case.get("mask")


def read_voxels(case: dict[str, Any], channel: int | None, spacing: list[float], foreground: bool) -> dict[str, Any]:
    """Hashes, intensities (of the file's scaled values) and label voxel counts of one case.

    Raises:
        InputError: for every fault that :class:`med3d_ext.transforms.load.LoadVolumed` refuses.
    """
    path = label_map(case)
    load = LoadVolumed(("image", "label") if path else "image", channel, spacing, foreground, store=store_in_use())
    item = load({"image": case["image"], "label": path})
    voxels = item["image"].numpy()
    return {
        "sha256": sha256(case["image"]),
        "intensity": {
            "minimum": float(voxels.min()),
            "maximum": float(voxels.max()),
            "mean": round(float(voxels.mean(dtype=np.float64)), 4),
            "standard_deviation": round(float(voxels.std(dtype=np.float64)), 4),
            "percentiles": {str(q): round(float(v), 4) for q, v in zip(PERCENTILES, _percentiles(voxels))},
        },
        **(_label_facts(item["label"], path) if path else NO_LABEL_MAP),
    }


def _label_facts(label: torch.Tensor, path: str) -> dict[str, Any]:
    values, counts = np.unique(label.numpy().astype(np.int64), return_counts=True)
    box = target_box(label)
    return {
        "label_sha256": sha256(path),
        "labels": {str(value): int(count) for value, count in zip(values, counts)},
        "target_box": None if box is None else [list(map(int, corner)) for corner in box],
    }


def _percentiles(voxels: np.ndarray) -> np.ndarray:
    flat = voxels.ravel()
    step = max(1, flat.size // 10_000_000)  # a summary for people; the networks' percentiles use every voxel
    return np.percentile(flat[::step], PERCENTILES)


def repair_spacing(headers: list[dict[str, Any]]) -> list[int]:
    """Give headers without usable spacing the mean of the others (paper, section 4.3) and return their numbers.

    Raises:
        InputError: when no header has a usable spacing.
    """
    usable = [header["spacing"] for header in headers if header["spacing"] is not None]
    if not usable:
        raise InputError("no image of the data set has a usable voxel spacing; write spacings into the headers.")
    repaired = [number for number, header in enumerate(headers) if header["spacing"] is None]
    for number in repaired:
        headers[number]["spacing"] = [round(float(value), 6) for value in np.mean(usable, axis=0)]
    return repaired


def scan_cases(
    cases: list[dict[str, Any]],
    known: list[dict[str, Any]],
    channel: int | None,
    foreground: bool,
    progress: Callable[[str], None],
    faults: Faults,
    workers: int = 2,
) -> list[dict[str, Any]]:
    """The second pass: add what :func:`read_voxels` finds to each case, taking unchanged files from ``known``.

    Args:
        cases: cases with header facts; changed in place.
        known: cases of an earlier scan.
        channel: channel of 4D images.
        foreground: refuse labels without foreground.
        progress: called with one line as the pass proceeds.
        faults: collects what is wrong with a case.
        workers: volumes read at once; each needs about five times its float32 size.

    Returns:
        the cases that could be read, in their order.
    """
    cached = {str(old.get("stamp")): old for old in known}  # whatever the path, inode and times are those of one file
    todo = []
    for case in cases:
        files = (case["image"], label_map(case))
        case["stamp"] = [SCAN, *(file_stamp(path) for path in files if path is not None)]
        old = cached.get(str(case["stamp"]))
        if old is not None and "sha256" in old:
            case.update({key: old[key] for key in ("sha256", "intensity", *NO_LABEL_MAP)})
        else:
            todo.append(case)
    with ThreadPoolExecutor(workers) as pool:
        found = [pool.submit(read_voxels, case, channel, case["spacing"], foreground) for case in todo]
        for number, (case, facts) in enumerate(zip(todo, found), start=1):
            with faults.caught():
                case.update(facts.result())
            if number == len(todo) or number % max(1, len(todo) // 5) == 0:
                progress(f"read {number} of {len(todo)} volumes ({Path(case['image']).name})")
    return [case for case in cases if "sha256" in case and "intensity" in case]


def summarize(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Spacing and intensity of a domain, from the cases that are not test."""
    seen = [case for case in cases if case["split"] != "test"] or cases
    spacing = np.array([case["spacing"] for case in seen])
    return {
        "spacing_median": [round(float(value), 6) for value in np.median(spacing, axis=0)],
        "spacing_mean": [round(float(value), 6) for value in np.mean(spacing, axis=0)],
        "shape_median": [float(value) for value in np.median([case["shape"] for case in seen], axis=0)],
        "intensity_observed": [
            min(case["intensity"]["minimum"] for case in seen),
            max(case["intensity"]["maximum"] for case in seen),
        ],
    }
