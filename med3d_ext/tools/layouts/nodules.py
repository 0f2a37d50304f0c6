"""Nodules with a rating of malignancy, as they come: ``nodules.csv`` with cubes, or a Decathlon folder of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.data.prepared_files import DATALIST
from med3d_ext.data.prepared_files import read_prepared as read_lists
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import read_json, read_table
from med3d_ext.tools.layouts.organs import listed_entries

TABLE = "nodules.csv"
CLASSES = {0: "benign", 1: "malignant"}
TIES = {"exclude": None, "benign": 0, "malignant": 1}
SUFFIXES = (".nii.gz", ".nii")
_SUBJECT = ("patient", "subject", "scan")  # what names the patient, the best first


def rated_class(malignancy: float, ties: str = "exclude") -> int | None:
    """Class of a median rating: 0 up to 3, 1 from 4 on; between them what ``ties`` says, None for "exclude"."""
    if malignancy <= 3:
        return 0
    return 1 if malignancy >= 4 else TIES[ties]


def median_rating(value: Any, where: str) -> float:
    """Median of the readers' ratings: a number, a list of numbers, or text such as ``3;4;5``.

    Raises:
        InputError: there is none, or one is not from 1 to 5.
    """
    parts = value if isinstance(value, list) else re.split(r"[;/|\s]+", str("" if value is None else value).strip())
    try:
        ratings = [float(part) for part in parts if part != ""]
    except (TypeError, ValueError):
        ratings = [0.0]
    if not ratings:
        raise InputError(f"{where} has no rating of malignancy; add it or remove the nodule.")
    if not all(1 <= rating <= 5 for rating in ratings):
        raise InputError(f"{where} has the malignancy '{value}'; ratings must be from 1 to 5: correct it.")
    return float(median(ratings))


def has_table(root: Path) -> bool:
    """Whether the folder has a ``nodules.csv``."""
    return (root / TABLE).is_file()


def read_rows(root: Path, output: Path | None, faults: Faults) -> Source:
    """``nodules.csv``, ``images/`` and perhaps ``masks/``.

    A row is a nodule: ``nodule`` (the file's name in ``images/`` and ``masks/``), ``malignancy`` (one rating from 1 to
    5, or those of all readers as ``3;4;5``) and, for the split, ``patient`` or ``scan``.
    """
    cases = []
    for line, row in read_table(root / TABLE, ("nodule", "malignancy")):
        with faults.caught():
            cases.append(_case_of_row(root, row, line))
    return Source(root.name, dict(CLASSES), {0: "CT"}, cases)


def read_entries(root: Path, output: Path | None, faults: Faults) -> Source:
    """``dataset.json``: entries with ``image`` and either ``malignancy`` or the class as ``label``.

    They may state ``mask`` and ``patient``.
    """
    path = root / "dataset.json"
    content = read_json(path)
    cases = []
    for where, entry in listed_entries(path, content, lambda entry: "malignancy" in entry or "label" in entry):
        with faults.caught():
            cases.append(_case_of_entry(root, entry, where))
    return Source(root.name, _class_names(root, content), {0: "CT"}, cases)


def has_datalist(root: Path) -> bool:
    """Whether ``prepare`` has written the folder."""
    return (root / DATALIST).is_file()


def read_prepared(root: Path, output: Path | None, faults: Faults) -> Source:
    """What ``prepare nodules`` has written, for another fold or cube."""
    found = read_lists(root)
    name, domain = next(iter(found.domains.items()))
    cases = []
    for case in found.cases[name]:
        with faults.caught():
            cases.append(_case_of_prepared(root, case))
    return Source(root.name, {int(value): str(title) for value, title in domain["classes"].items()}, {0: "CT"}, cases)


def _case_of_row(root: Path, row: dict[str, str], line: int) -> dict[str, Any]:
    name = row["nodule"]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    where = f"nodule '{name}' (line {line} of '{root / TABLE}')"
    image = _find(root / "images", name)
    if not name or image is None:
        raise InputError(f"{where} has no image '{root / 'images' / name}.nii.gz'; restore it or remove the row.")
    case: dict[str, Any] = {"image": image, "malignancy": median_rating(row["malignancy"], where)}
    mask = _find(root / "masks", name)
    return {**case, **({"mask": mask} if mask else {}), **_subject(row)}


def _find(folder: Path, name: str) -> str | None:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    return str(existing_file(found[0])) if found else None


def _subject(entry: Mapping[str, Any]) -> dict[str, str]:
    stated = [str(entry[key]).strip() for key in _SUBJECT if str(entry.get(key) or "").strip()]
    return {"subject": stated[0]} if stated else {}


def _case_of_prepared(root: Path, case: dict[str, Any]) -> dict[str, Any]:
    facts = ("label", "malignancy", "subject", "given", "fold")
    kept: dict[str, Any] = {key: case[key] for key in facts if key in case}
    for key in ("image", "mask"):
        if key in case:
            kept[key] = str(existing_file(Path(case[key]), root / DATALIST))
    return kept


def _class_names(root: Path, content: Mapping[str, Any]) -> dict[int, str]:
    try:
        classes = {int(value): str(name) for value, name in (content.get("labels") or CLASSES).items()}
    except (AttributeError, ValueError):
        classes = {}
    if sorted(classes) != [0, 1]:
        raise InputError(
            f"'{root / 'dataset.json'}' must name two classes under 'labels', as {{'0': 'benign', '1': 'malignant'}}."
        )
    return classes


def _case_of_entry(root: Path, entry: Any, where: str) -> dict[str, Any]:
    path = root / "dataset.json"
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError(f"{where} has no image; complete it.")
    case: dict[str, Any] = {"image": str(existing_file(root / entry["image"], path)), **_subject(entry)}
    case |= {key: entry[key] for key in ("given", "fold") if key in entry}
    label = entry.get("label")
    mask = entry.get("mask", label if isinstance(label, str) else None)
    if mask is not None:
        case["mask"] = str(existing_file(root / mask, path))
    if "malignancy" in entry:
        return {**case, "malignancy": median_rating(entry["malignancy"], where)}
    if isinstance(label, bool) or label not in (0, 1):
        raise InputError(f"{where} has neither 'malignancy' nor a class as 'label' (0 or 1); complete it.")
    return {**case, "label": int(label)}
