"""Nodules with a rating of malignancy, as they come: ``nodules.csv`` with cubes, or a Decathlon folder of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import read_json, read_table
from med3d_ext.tools.layouts.organs import LIST, listed_entries

TABLE = "nodules.csv"
CLASSES = {0: "benign", 1: "malignant"}
TIES = {"exclude": None, "benign": 0, "malignant": 1}
SUFFIXES = (".nii.gz", ".nii")
_SUBJECT = ("patient", "subject", "scan")  # what names the patient, the best first


def rated_class(malignancy: float, ties: str = "exclude") -> int | None:
    """Class of a median rating (paper, section 4.2): 0 up to 3, 1 from 4 on; between them what ``ties`` says."""
    if malignancy <= 3:
        return 0
    return 1 if malignancy >= 4 else TIES[ties]


def with_classes(source: Source, ties: str = "exclude") -> Source:
    """Each nodule with its class as ``label`` and ``stratum``, without the tied ones that ``ties`` excludes."""
    counts = Counter(case["image"] for case in source.cases)
    cases = []
    for case in source.cases:
        if counts[case["image"]] > 1:
            raise InputError(
                f"'{case['image']}' is listed {counts[case['image']]} times in '{source.name}'; a nodule is one row: "
                "remove the others."
            )
        label = rated_class(case["malignancy"], ties) if "malignancy" in case else case["label"]
        if label is not None:
            cases.append({**case, "label": label, "stratum": source.classes[label]})
    return replace(source, cases=cases)


def median_rating(value: Any, where: str) -> float:
    """Median of the readers' ratings from 1 to 5: a number, a list of numbers, or text such as ``3;4;5``."""
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


def read_rows(root: Path, output: Path | None, faults: Faults) -> Source:
    """``nodules.csv``, ``images/`` and perhaps ``masks/``.

    A row is a nodule: ``nodule`` (the file's name in ``images/`` and ``masks/``), ``malignancy`` (one rating from 1 to
    5, or those of all readers as ``3;4;5``) and, for the split, ``patient`` or ``scan``.
    """
    cases = []
    for line, row in read_table(root / TABLE, ("nodule", "malignancy")):
        name = re.sub(r"\.nii(\.gz)?$", "", row["nodule"])
        where = f"nodule '{name}' (line {line} of '{root / TABLE}')"
        files = {
            key: str(existing_file(path))
            for key in ("mask", "image")
            for suffix in reversed(SUFFIXES)
            if (path := root / f"{key}s" / f"{name}{suffix}").is_file()
        }
        with faults.caught():
            if not name or "image" not in files:
                raise InputError(
                    f"{where} has no image '{root / 'images' / name}.nii.gz'; restore it or remove the row."
                )
            cases.append({**files, "malignancy": median_rating(row["malignancy"], where), **_subject(row)})
    return Source(root.name, dict(CLASSES), {0: "CT"}, cases)


def read_entries(root: Path, output: Path | None, faults: Faults) -> Source:
    """``dataset.json``: entries with ``image`` and either ``malignancy`` or the class as ``label``.

    They may state ``mask`` and ``patient``.
    """
    path = root / LIST
    content = read_json(path)
    cases = []
    for where, entry in listed_entries(path, content, lambda entry: "malignancy" in entry or "label" in entry):
        with faults.caught():
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise InputError(f"{where} has no image; complete it.")
            case: dict[str, Any] = {"image": str(existing_file(root / entry["image"], path)), **_subject(entry)}
            case |= {key: entry[key] for key in ("given", "fold") if key in entry}
            label = entry.get("label")
            mask = entry.get("mask", label if isinstance(label, str) else None)
            if mask is not None:
                case["mask"] = str(existing_file(root / mask, path))
            if "malignancy" in entry:
                case["malignancy"] = median_rating(entry["malignancy"], where)
            elif isinstance(label, bool) or label not in (0, 1):
                raise InputError(f"{where} has neither 'malignancy' nor a class as 'label' (0 or 1); complete it.")
            else:
                case["label"] = int(label)
            cases.append(case)
    try:
        classes = {int(value): str(name) for value, name in (content.get("labels") or CLASSES).items()}
    except (AttributeError, ValueError):
        classes = {}
    if sorted(classes) != [0, 1]:
        raise InputError(f"'{path}' must name two classes under 'labels', as {{'0': 'benign', '1': 'malignant'}}.")
    return Source(root.name, classes, {0: "CT"}, cases)


def _subject(entry: Mapping[str, Any]) -> dict[str, str]:
    stated = [str(entry[key]).strip() for key in _SUBJECT if str(entry.get(key) or "").strip()]
    return {"subject": stated[0]} if stated else {}
