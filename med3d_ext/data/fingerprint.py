"""What a data set looks like: spacing, shapes, intensities, classes and hashes of its cases, and a summary of them.

The first pass reads headers alone (seconds for hundreds of files); the second reads every voxel once and is cached by
file size, times and inode, so that a second call costs nothing. Samples are known by digests of their content: names do
not count, so corrections are noticed and moves are not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data.utils import pickle_hashing

from med3d_ext.data.datalists import Source
from med3d_ext.errors import Faults, InputError
from med3d_ext.io import image_files
from med3d_ext.io.files import case_name, file_digest, file_stamp, sha256
from med3d_ext.io.store import store_in_use
from med3d_ext.transforms.load import LoadVolumed, load_volume, usable_spacing
from med3d_ext.transforms.sampling import target_box

logger = logging.getLogger("med3d_ext.prepare")
PERCENTILES = (0.5, 50.0, 99.5)
SCAN = 2  # raise it when the second pass finds something else in the same files
NO_LABEL_MAP: dict[str, Any] = {"label_sha256": None, "labels": {}, "target_box": None}
FILES = ("image", "label", "mask")
"""Keys of an item whose values are files; the label of a classification is a number, and its mask may be missing."""
HASHES = ("sha256", "label_sha256")
"""Keys of an item that state the content of its image and of its label map."""


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Shape (voxels), spacing (mm, of the stored axes) and orientation ("RAS") from a header alone; channels last."""
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


def read_voxels(
    case: dict[str, Any], channel: int | str | None, spacing: list[float], foreground: bool
) -> dict[str, Any]:
    """Hashes, intensities (of the file's scaled values) and label voxel counts of one case, read by LoadVolumed."""
    path = label_map(case)
    load = LoadVolumed(("image", "label") if path else "image", channel, spacing, foreground, store=store_in_use())
    item = load({"image": case["image"], "label": path})
    voxels = item["image"].numpy()
    step = max(1, voxels.size // 10_000_000)  # a summary for people; the networks' percentiles use every voxel
    percentiles = np.percentile(voxels.ravel()[::step], PERCENTILES)
    facts = {
        "sha256": sha256(case["image"]),
        "intensity": {
            "minimum": float(voxels.min()),
            "maximum": float(voxels.max()),
            "mean": round(float(voxels.mean(dtype=np.float64)), 4),
            "standard_deviation": round(float(voxels.std(dtype=np.float64)), 4),
            "percentiles": {str(q): round(float(v), 4) for q, v in zip(PERCENTILES, percentiles)},
        },
    }
    if path is None:
        return facts | NO_LABEL_MAP
    values, counts = np.unique(item["label"].numpy().astype(np.int64), return_counts=True)
    box = target_box(item["label"])
    return facts | {
        "label_sha256": sha256(path),
        "labels": {str(value): int(count) for value, count in zip(values, counts)},
        "target_box": None if box is None else [list(map(int, corner)) for corner in box],
    }


def scan_cases(
    cases: list[dict[str, Any]],
    known: list[dict[str, Any]],
    channel: int | str | None,
    foreground: bool,
    faults: Faults,
) -> list[dict[str, Any]]:
    """The second pass: add what :func:`read_voxels` finds to each case, in place, and return those that can be read.

    Files that ``known`` has unchanged are not read again. Two volumes are read at once, each of which needs about five
    times its float32 size.
    """
    cached = {str(old.get("stamp")): old for old in known}  # whatever the path, inode and times are those of one file
    todo = []
    for case in cases:
        files = (case["image"], label_map(case))
        case["stamp"] = [SCAN, *(file_stamp(path) for path in files if path is not None)]
        old = cached.get(str(case["stamp"]), {})
        if "sha256" in old:
            case.update({key: old[key] for key in ("sha256", "intensity", *NO_LABEL_MAP)})
        else:
            todo.append(case)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(read_voxels, case, channel, case["spacing"], foreground) for case in todo]
        for number, (case, facts) in enumerate(zip(todo, found), start=1):
            with faults.caught():
                case.update(facts.result())
            if number == len(todo) or number % max(1, len(todo) // 5) == 0:
                logger.info(f"read {number} of {len(todo)} volumes ({Path(case['image']).name})")
    return [case for case in cases if "intensity" in case]


def fingerprint_domain(
    source: Source, known: list[dict[str, Any]], channel: int | str | None, foreground: bool, faults: Faults
) -> list[dict[str, Any]]:
    """Both passes over one source: its good cases, each once, with all that the passes find.

    Cases of ``known``, an earlier scan, are read again only if files changed. ``channel`` None wants 3D images. Faulty:
    a file is damaged, channels differ, or a label value is not a class.
    """
    cases: list[dict[str, Any]] = []
    for case in source.cases:
        with faults.caught():
            case = {**case, **read_header(case["image"])}
            if channel is None and case["channels"] > 1:
                raise InputError(f"'{case['image']}' is a 4D file; this task takes 3D volumes: split it.")
            if cases and case["channels"] != cases[0]["channels"]:
                raise InputError(
                    f"'{case['image']}' has {case['channels']} channels, '{cases[0]['image']}' has "
                    f"{cases[0]['channels']}; a domain's images must have the same channels: repair or remove one."
                )
            cases.append(case)
    usable = [case["spacing"] for case in cases if case["spacing"] is not None]
    if cases and not usable:
        raise InputError("no image of the data set has a usable voxel spacing; write spacings into the headers.")
    for case in cases:  # without one, the mean of the others (paper, section 4.3); reading the image warns of it
        case["spacing"] = case["spacing"] or [round(float(value), 6) for value in np.mean(usable, axis=0)]
    good = []
    for case in scan_cases(cases, known, channel, foreground, faults):
        unknown = sorted(set(map(int, case["labels"])) - set(source.classes)) if isinstance(case["label"], str) else []
        with faults.caught():
            if unknown:
                raise InputError(
                    f"label '{case['label']}' holds the value {unknown[0]}, {source.name} has the classes "
                    f"{sorted(source.classes)}; correct one."
                )
            good.append(case)
    return _without_twins(good)


def _without_twins(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case once, with a warning for those that are listed again, under the same name or another one."""
    kept: dict[str, dict[str, Any]] = {}
    for case in cases:
        first = kept.setdefault(case["sha256"], case)
        if first is case:
            continue
        names = f"'{case['image']}'" if case["image"] == first["image"] else f"'{first['image']}' and '{case['image']}'"
        is_same = first["label"] == case["label"]
        if not is_same and isinstance(case["label"], str):
            is_same = first["label_sha256"] == case["label_sha256"]
            if not is_same:  # the same voxels, perhaps packed anew
                is_same = np.array_equal(load_volume(first["label"]).numpy(), load_volume(case["label"]).numpy())
        if not is_same:
            labels = ", ".join(f"'{each.get('mask', each['label'])}'" for each in (first, case))
            raise InputError(f"{names}: one image with two different labels ({labels}); remove the wrong one.")
        if first.get("given") != case.get("given"):
            raise InputError(
                f"{names}: one image, listed as {first['given']} and as {case['given']}; remove one entry."
            )
        logger.warning(f"{names}: one case, listed twice; it counts once")
    return list(kept.values())


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


# Digests of what a sample is made of


def stated_files(item: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Key, path and SHA-256 of each file of an item; None for a file that is there and whose content is not stated."""
    hashes = {item.get("image"): item.get("sha256"), label_map(item): item.get("label_sha256")}
    for key, value in item.items():
        is_path = isinstance(value, str | os.PathLike) and (key in FILES or os.path.isabs(value))
        digest = hashes.get(value) or None if is_path else None
        if is_path and key not in HASHES and (digest is not None or os.path.isfile(value)):
            yield key, str(value), digest


def item_digest(item: Mapping[str, Any], *, domain: bool = True) -> str:
    """Digest of all that a sample is made of: the content of its files and whatever else the item states.

    Files whose content it does not state are read; ``domain`` False leaves out the domain's name.
    """
    parts = {key: value for key, value in item.items() if key not in HASHES and (domain or key != "domain")}
    parts |= {key: digest or file_digest(path) for key, path, digest in stated_files(item)}
    text = json.dumps(parts, sort_keys=True, default=lambda value: pickle_hashing(value).decode())
    return hashlib.sha256(text.encode()).hexdigest()


def check_content(item: Mapping[str, Any]) -> None:
    """Refuse an item (InputError) one of whose files is no longer what the item states."""
    for _, path, digest in stated_files(item):
        if digest is not None and os.path.isfile(path) and file_digest(path) != digest:  # one that is gone: the reader
            raise InputError(f"'{path}' changed after the run had begun; start the run again.")


def digests(**splits: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """A digest and the name of each case that a training depends on, sorted: what it compares when it resumes.

    The name of a single domain, which is that of its folder, does not count.
    """
    every = [(use, item) for use, items in splits.items() for item in items]
    several = len({item.get("domain") for _, item in every}) > 1
    return sorted(
        [f"{use} {item_digest(item, domain=several)[:32]}", f"{case_name(item['image'])} ({use})"]
        for use, item in every
    )


def changed_cases(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> list[str]:
    """Names of the cases that only one of two results of :func:`digests` has, or has more often."""
    before, now = (Counter(digest for digest, _ in each) for each in (old, new))
    return sorted({name for digest, name in [*old, *new] if before[digest] != now[digest]})
