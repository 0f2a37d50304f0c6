"""Lung data: VISCERAL's files and TotalSegmentator's folders, whose masks are merged, and the classes of a lung."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import file_stamp, write_atomically
from med3d_ext.io.grids import Grid, copy_geometry, grid_of_file, on_image_grid
from med3d_ext.transforms.load import load_volume
from med3d_ext.transforms.values import whole_values

logger = logging.getLogger("med3d_ext.prepare")
RIGHT, LEFT, EITHER = 1, 2, 3
LUNGS = {0: "background", RIGHT: "right lung", LEFT: "left lung"}
LUNG, LOBE, LOBES = {"lung", "lungs"}, {"lobe"}, {"upper", "middle", "lower"}  # other organs have lobes of other names
SIDES = {"right": RIGHT, "r": RIGHT, "left": LEFT, "l": LEFT}
# 10000100_1_CTce_ThAb.nii.gz is a volume, 10000100_1_CTce_ThAb_1302_8.nii.gz a mask: a structure by its RadLex number,
# an annotator. The silver corpus leaves the modality out of a mask's name.
VISCERAL = re.compile(
    r"(?P<volume>(?P<patient>\d+)_\d+)(?:_(?P<modality>[A-Za-z][A-Za-z0-9]*_[A-Za-z]+))?"
    r"(?:_(?P<radlex>\d+)(?:_\w+)?)?\.nii(?:\.gz)?"
)
RADLEX = {"1302": RIGHT, "1326": LEFT}
SCANS = {"ct": "CT", "mri": "MR"}  # file of a TotalSegmentator folder to its modality
PARTS = (  # masks of such a folder: the two lungs, else the five lobes
    {"lung_right": RIGHT, "lung_left": LEFT},
    {f"lung_{lobe}_lobe_right": RIGHT for lobe in ("upper", "middle", "lower")}
    | {f"lung_{lobe}_lobe_left": LEFT for lobe in ("upper", "lower")},
)


def lung_classes(
    names: Mapping[int, str], num_classes: int, where: str | os.PathLike
) -> tuple[dict[str, str], dict[str, int]]:
    """Classes to train (2: lung, 3: right and left lung), and the map from every label value to its class.

    Classes named after a lung or a lobe count, all others become background. ``where`` is the folder, for the error.
    """
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


def side_of(name: str) -> int:
    """``RIGHT``, ``LEFT``, ``EITHER`` or 0 for a class that is not a lung: of names as "left lung" or "Lung_L"."""
    words = re.findall(r"[a-z]+", name.lower())
    if not LUNG & set(words) and not (LOBE & set(words) and LOBES & set(words)):
        return 0
    return next((SIDES[word] for word in words if word in SIDES), EITHER)


def is_totalsegmentator(root: Path) -> bool:
    """Whether there are folders of a case with a scan and a folder of masks."""
    return any((image.parent / "segmentations").is_dir() for scan in SCANS for image in root.glob(f"*/{scan}.nii*"))


def read_totalsegmentator(root: Path, output: Path | None, faults: Faults) -> Source:
    """``sNNNN/ct.nii.gz`` or ``mri.nii.gz`` with masks in ``segmentations/``; cases without lungs are left out."""
    cases: list[dict[str, Any]] = []
    without: list[str] = []
    for scan, modality in SCANS.items():
        for image in sorted(root.glob(f"*/{scan}.nii*")):
            folder = image.parent / "segmentations"
            masks = {path.name.split(".")[0]: path for path in folder.glob("lung_*.nii*")}
            table = next((table for table in PARTS if table.keys() & masks.keys()), None)
            with faults.caught():
                if table is None:
                    without += [image.parent.name] * folder.is_dir()
                    continue
                if missing := sorted(table.keys() - masks.keys()):
                    raise InputError(f"'{folder / missing[0]}.nii.gz' does not exist; restore it or remove the case.")
                parts = {str(masks[name]): value for name, value in table.items()}
                cases.append({"name": image.parent.name, "image": str(image), "modality": modality, "parts": parts})
    _warn_of(without, "have no masks of the lungs")
    return _with_label_maps(root, output, cases, faults)


def is_visceral(root: Path) -> bool:
    """Whether VISCERAL's files are in the folder, in any depth."""
    return any(VISCERAL.fullmatch(path.name) for path in root.rglob("*.nii*"))


def read_visceral(root: Path, output: Path | None, faults: Faults) -> Source:
    """VISCERAL's volumes, wherever they are in the folder, with the masks of both lungs.

    A volume without a mask of one lung is left out with a warning: nobody says whether the lung is missing or its mask.
    Of several annotators' masks the first by name is taken.
    """
    volumes: dict[str, tuple[Path, str, str]] = {}
    masks: dict[str, dict[int, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        found = VISCERAL.fullmatch(path.name)
        if found and found["radlex"] in RADLEX:
            masks.setdefault(found["volume"], {}).setdefault(RADLEX[found["radlex"]], path)
        elif found and found["modality"] and not found["radlex"]:
            volumes.setdefault(found["volume"], (path, found["patient"], found["modality"]))
    cases, without = [], []
    for volume, (path, patient, modality) in volumes.items():
        if len(own := masks.get(volume, {})) < len(RADLEX):
            without.append(path.name)
            continue
        parts = {str(mask): side for side, mask in own.items()}
        name = path.name.split(".")[0]
        cases.append({"name": name, "image": str(path), "modality": modality, "subject": patient, "parts": parts})
    _warn_of(without, "have no masks of both lungs")
    _warn_of(sorted(masks.keys() - volumes.keys()), "have masks and no volume")
    if not cases and (volumes or masks):
        raise InputError(
            f"'{root}' has no volume with masks of both lungs (RadLex 1302 and 1326); add its segmentations."
        )
    return _with_label_maps(root, output, cases, faults)


def _with_label_maps(root: Path, output: Path | None, cases: list[dict[str, Any]], faults: Faults) -> Source:
    """The cases, their masks merged to one label map each in ``labels/`` of ``output``; empty ones are left out."""
    target = Path(output or root).resolve()
    if target.is_relative_to(root):
        raise InputError(f"output must be a folder outside of '{root}' for the merged label maps, got '{output}'.")

    def merged() -> Iterator[dict[str, Any]]:
        for number, case in enumerate(cases):
            if number and number % max(1, len(cases) // 5) == 0:
                logger.info(f"merged the masks of {number} of {len(cases)} cases")
            with faults.caught():
                case["image"] = str(existing_file(Path(case["image"])))
                label = target / "labels" / f"{case['name']}.nii.gz"
                if merge_masks(case["image"], case["parts"], label):
                    facts = {key: value for key, value in case.items() if key != "name"}
                    yield {**facts, "label": str(label), "parts": list(case["parts"])}
                else:
                    empty.append(case["name"])

    empty: list[str] = []
    labelled = list(merged())
    _warn_of(empty, "show no lung")
    if not labelled and not faults.sentences:
        raise InputError(f"dataset_dir '{root}' has no case that shows a lung; give cases of the chest.")
    return Source(root.name, LUNGS, {0: "CT or MR"}, labelled)


def _warn_of(names: list[str], why: str) -> None:
    if names:
        some = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
        logger.warning(f"left out: {len(names)} cases {why} ({some})")


def merge_masks(image: str, parts: Mapping[str, int], label: Path) -> bool:
    """Write one label map on the image's grid from masks, file to value; whether there is any foreground.

    What the same masks gave before is left as it is.
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
