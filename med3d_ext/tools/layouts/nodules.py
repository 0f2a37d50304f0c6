"""Nodules with a rating of malignancy, as they come: ``nodules.csv`` with cubes, or a Decathlon folder of classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from med3d_ext.data.datalists import Source, existing_file, listed_entries
from med3d_ext.data.fingerprint import read_voxels
from med3d_ext.data.prepared_files import DATALIST, read_prepared
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.files import read_json, read_table

TABLE = "nodules.csv"
CLASSES = {0: "benign", 1: "malignant"}
TIES = {"exclude": None, "benign": 0, "malignant": 1}
SUFFIXES = (".nii.gz", ".nii")
_SUBJECT = ("patient", "subject", "scan")  # what names the patient, the best first


@dataclass(frozen=True)
class Nodules:
    """What a folder of nodules holds.

    Args:
        source: the cases: ``image``, ``label`` (0 or 1), perhaps ``mask``, ``malignancy`` and ``subject``; ``stratum``.
        tied: number of nodules that were left out because their median rating lies between the classes.
        skipped: one sentence for each faulty nodule that was left out.
    """

    source: Source
    tied: int
    skipped: list[str]


def read_nodules(folder: str | os.PathLike, ties: str = "exclude", skip_bad: bool = False) -> Nodules:
    """Read a folder with ``nodules.csv``, ``images/`` and perhaps ``masks/``, with ``dataset.json``, or a prepared one.

    ``nodules.csv`` has a row per nodule: ``nodule`` (the file's name in ``images/`` and ``masks/``), ``malignancy``
    (one rating from 1 to 5, or those of all readers as ``3;4;5``) and, for the split, ``patient`` or ``scan``. The
    entries of ``dataset.json`` state ``image`` and either ``malignancy`` or the class as ``label``, perhaps ``mask``
    and ``patient``.

    The class is that of the median rating: benign up to 3, malignant from 4 on (paper, section 4.2).

    Args:
        folder: the source folder.
        ties: what becomes of a median between 3 and 4: "exclude", "benign" or "malignant".
        skip_bad: leave out nodules that are faulty instead of refusing the folder.

    Raises:
        InputError: when the folder has neither layout, a nodule has no rating from 1 to 5, its file is missing or
            damaged, it is listed twice, or only one class is left.
    """
    if ties not in TIES:
        raise InputError(f"ties must be one of {', '.join(TIES)}, got {ties!r}.")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"dataset_dir '{folder}' is not a folder; give the folder that holds {TABLE} or dataset.json.")
    root = root.resolve()
    classes, entries, read = _layout(root)
    cases, tied, total, faults = [], 0, 0, Faults(skip_bad)
    for number, entry in entries:
        total += 1
        with faults.caught():
            case = read(root, entry, number)
            if "malignancy" in case:
                case["label"] = rated_class(case["malignancy"], ties)
            if skip_bad:  # else a damaged file is found where all voxels are read, once
                read_voxels(case, channel=None, spacing=[1.0, 1.0, 1.0], foreground=True)
            if case["label"] is None:
                tied += 1
            else:
                cases.append({**case, "stratum": classes[case["label"]]})
    if faults.sentences and not skip_bad:
        raise FaultyCases(faults.sentences, total)
    _check_cases(root, cases, classes)
    return Nodules(Source(root.name, classes, {0: "CT"}, cases), tied, faults.sentences)


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


Entries = Iterator[tuple[Any, dict[str, Any]]]
Reader = Callable[[Path, dict[str, Any], Any], dict[str, Any]]


def _layout(root: Path) -> tuple[dict[int, str], Entries, Reader]:
    """Class names, entries with their numbers or places, and what makes a case of an entry."""
    if (root / TABLE).is_file():
        return dict(CLASSES), iter(read_table(root / TABLE, ("nodule", "malignancy"))), _case_of_row
    if (root / "dataset.json").is_file():
        content = read_json(root / "dataset.json")
        entries = listed_entries(
            root / "dataset.json", content, lambda entry: "malignancy" in entry or "label" in entry
        )
        return _class_names(root, content), iter(entries), _case_of_entry
    if (root / DATALIST).is_file():
        found = read_prepared(root)
        name, domain = next(iter(found.domains.items()))
        classes = {int(value): str(title) for value, title in domain["classes"].items()}
        return classes, enumerate(found.cases[name]), _case_of_prepared
    fault = "is empty" if not any(root.iterdir()) else f"holds neither {TABLE} nor dataset.json"
    raise InputError(f"dataset_dir '{root}' {fault}; give a folder of nodules with a table of their ratings.")


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


def _case_of_prepared(root: Path, case: dict[str, Any], number: int) -> dict[str, Any]:
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


def _check_cases(root: Path, cases: list[dict[str, Any]], classes: Mapping[int, str]) -> None:
    (image, count) = next(iter(Counter(case["image"] for case in cases).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(f"'{image}' is listed {count} times in '{root}'; a nodule is one row: remove the others.")
    found = {case["label"] for case in cases}
    for value, name in classes.items():
        if value not in found:
            raise InputError(f"'{root}' holds no {name} nodule; both classes are needed to train and to measure.")
