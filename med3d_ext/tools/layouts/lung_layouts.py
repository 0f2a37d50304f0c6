"""Layouts of lung data alone: VISCERAL's files, TotalSegmentator's folders, a folder that is prepared already."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.data.prepared_files import DATALIST
from med3d_ext.data.prepared_files import read_prepared as read_lists
from med3d_ext.errors import Faults, InputError
from med3d_ext.tools.layouts.lung_labels import LEFT, LUNGS, RIGHT, merge_masks

logger = logging.getLogger("med3d_ext.prepare")

# 10000100_1_CTce_ThAb.nii.gz is a volume, 10000100_1_CTce_ThAb_1302_8.nii.gz a mask: a structure by its RadLex number,
# an annotator. The silver corpus leaves the modality out of a mask's name.
VISCERAL = re.compile(
    r"(?P<volume>(?P<patient>\d+)_\d+)(?:_(?P<modality>[A-Za-z][A-Za-z0-9]*_[A-Za-z]+))?"
    r"(?:_(?P<radlex>\d+)(?:_\w+)?)?\.nii(?:\.gz)?"
)
RADLEX = {"1302": RIGHT, "1326": LEFT}
WHOLE = {"lung_right": RIGHT, "lung_left": LEFT}
LOBES = {
    **dict.fromkeys(("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"), RIGHT),
    **dict.fromkeys(("lung_upper_lobe_left", "lung_lower_lobe_left"), LEFT),
}
SCANS = {"ct": "CT", "mri": "MR"}  # file of a TotalSegmentator folder to its modality


def has_datalist(root: Path) -> bool:
    """Whether ``prepare`` has written the folder."""
    return (root / DATALIST).is_file()


def read_prepared(root: Path, output: Path | None, faults: Faults) -> Source:
    """What ``prepare lung`` has written, for another split or other classes."""
    found = read_lists(root)
    name, domain = next(iter(found.domains.items()))
    if "label_names" not in domain:
        raise InputError(f"'{root}' was not prepared for the lung bundle; give the source folder.")
    cases = []
    for case in found.cases[name]:
        known = {key: case[key] for key in ("modality", "subject", "stratum", "given", "fold") if key in case}
        files = {key: str(existing_file(Path(case[key]), root / DATALIST)) for key in ("image", "label")}
        cases.append(known | files)
    return Source(name, {int(k): v for k, v in domain["label_names"].items()}, {0: "image"}, cases)


def is_totalsegmentator(root: Path) -> bool:
    """Whether there are folders of a case with a scan and a folder of masks."""
    return any((image.parent / "segmentations").is_dir() for scan in SCANS for image in root.glob(f"*/{scan}.nii*"))


def read_totalsegmentator(root: Path, output: Path | None, faults: Faults) -> Source:
    """TotalSegmentator's cases with a lung; their masks become label maps in ``output``."""
    return _with_label_maps(root, output, find_totalsegmentator(root, faults), faults)


def is_visceral(root: Path) -> bool:
    """Whether VISCERAL's files are in the folder, in any depth."""
    return any(VISCERAL.fullmatch(path.name) for path in root.rglob("*.nii*"))


def read_visceral(root: Path, output: Path | None, faults: Faults) -> Source:
    """VISCERAL's volumes with masks of both lungs, which become label maps in ``output``."""
    return _with_label_maps(root, output, find_visceral(root), faults)


def _with_label_maps(root: Path, output: Path | None, cases: list[dict[str, Any]], faults: Faults) -> Source:
    """The cases, their masks merged to one label map each in ``labels/`` of ``output``.

    Raises:
        InputError: no case shows a lung, or ``output`` is inside the data.
    """
    target = Path(output or root).resolve()
    if target.is_relative_to(root):
        raise InputError(f"output must be a folder outside of '{root}' for the merged label maps, got '{output}'.")
    labelled = list(_merged(cases, target / "labels", faults))
    if not labelled and not faults.sentences:
        raise InputError(f"dataset_dir '{root}' has no case that shows a lung; give cases of the chest.")
    return Source(root.name, LUNGS, {0: "CT or MR"}, labelled)


def find_totalsegmentator(root: Path, faults: Faults) -> list[dict[str, Any]]:
    """Cases of ``sNNNN/ct.nii.gz`` or ``mri.nii.gz`` with masks in ``segmentations/``: two lungs, or five lobes.

    ``faults`` collects the cases that have some of their lobes only.
    """
    cases: list[dict[str, Any]] = []
    without: list[str] = []
    for scan, modality in SCANS.items():
        for image in sorted(root.glob(f"*/{scan}.nii*")):
            masks = image.parent / "segmentations"
            if not masks.is_dir():
                continue
            found = {path.name.split(".")[0]: path for path in masks.glob("lung_*.nii*")}
            with faults.caught():
                parts = _lung_masks(masks, found)
                if parts:
                    cases.append({"name": image.parent.name, "image": str(image), "modality": modality, "parts": parts})
                else:
                    without.append(image.parent.name)
    _tell_left_out(without, "have no masks of the lungs")
    return cases


def _lung_masks(folder: Path, found: Mapping[str, Path]) -> dict[str, int]:
    """Mask file to value: the two lungs, else the five lobes, else nothing."""
    for table in (WHOLE, LOBES):
        missing = sorted(table.keys() - found.keys())
        if not missing:
            return {str(found[name]): value for name, value in table.items()}
        if len(missing) < len(table):
            raise InputError(f"'{folder / missing[0]}.nii.gz' does not exist; restore it or remove the case.")
    return {}


def find_visceral(root: Path) -> list[dict[str, Any]]:
    """Cases of VISCERAL's files, wherever they lie in the folder; each has its volume and the masks of both lungs.

    A volume without a mask of one lung is left out with a warning: nobody says whether the lung is missing or its mask.
    Of several annotators' masks the first by name is taken.

    Raises:
        InputError: when there are such files, and no volume has both masks.
    """
    volumes: dict[str, tuple[Path, str, str]] = {}
    masks: dict[str, dict[int, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        found = VISCERAL.fullmatch(path.name)
        if found and found["radlex"] in RADLEX:
            masks.setdefault(found["volume"], {}).setdefault(RADLEX[found["radlex"]], path)
        elif found and found["modality"] and not found["radlex"]:
            volumes.setdefault(found["volume"], (path, found["patient"], found["modality"]))
    cases = []
    for volume, (path, patient, modality) in volumes.items():
        if len(own := masks.get(volume, {})) == len(RADLEX):
            parts = {str(mask): side for side, mask in own.items()}
            name = path.name.split(".")[0]
            cases.append({"name": name, "image": str(path), "modality": modality, "subject": patient, "parts": parts})
    complete = {case["image"] for case in cases}
    left_out = [path.name for path, _, _ in volumes.values() if str(path) not in complete]
    _tell_left_out(left_out, "have no masks of both lungs")
    _tell_left_out(sorted(masks.keys() - volumes.keys()), "have masks and no volume")
    if not cases and (volumes or masks):
        raise InputError(
            f"'{root}' has no volume with masks of both lungs (RadLex 1302 and 1326); add its segmentations."
        )
    return cases


def _merged(cases: Sequence[Mapping[str, Any]], folder: Path, faults: Faults) -> Iterable[dict[str, Any]]:
    """The cases with one label map each; those whose masks are all empty are left out."""
    empty: list[str] = []
    for number, case in enumerate(cases):
        if number and number % max(1, len(cases) // 5) == 0:
            logger.info(f"merged the masks of {number} of {len(cases)} cases")
        with faults.caught():
            image = str(existing_file(Path(case["image"])))
            label = folder / f"{case['name']}.nii.gz"
            if merge_masks(image, case["parts"], label):
                kept = {key: case[key] for key in ("modality", "subject") if key in case}
                yield {"image": image, "label": str(label), "parts": list(case["parts"]), **kept}
            else:
                empty.append(case["name"])
    _tell_left_out(empty, "show no lung")


def _tell_left_out(names: list[str], why: str) -> None:
    if names:
        some = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
        logger.warning(f"left out: {len(names)} cases {why} ({some})")
