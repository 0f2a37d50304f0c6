"""``prepare nodules``: rated nodules become a datalist of two classes, split by patient."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.data.datalists import Source
from med3d_ext.data.fingerprint import read_voxels, summarize
from med3d_ext.data.prepared_files import fingerprint_domain, known_cases, write_prepared
from med3d_ext.data.splits import split_cases
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.facts import facts_path, read_facts
from med3d_ext.tools.layouts.nodules import TABLE, TIES, rated_class
from med3d_ext.tools.layouts.table import read_source
from med3d_ext.tools.lidc.prepare import nodules_folder

logger = logging.getLogger("med3d_ext.prepare")
CUBE_MM = 32.0  # holds LIDC's nodules of 3 to 30 mm, and little else: the network pools over all of it
INTENSITY_RANGE = (-1000.0, 400.0)  # HU; what lies beyond is air and bone, and the percentiles should not depend on it


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
    """Read a folder of nodules, see :mod:`med3d_ext.tools.layouts.nodules`, and give each nodule its class.

    It is that of the median rating: benign up to 3, malignant from 4 on (paper, section 4.2).

    Args:
        folder: the source folder.
        ties: what becomes of a median between 3 and 4: "exclude", "benign" or "malignant".
        skip_bad: leave out nodules that are faulty instead of refusing the folder.

    Raises:
        InputError: when the folder has no known layout, a nodule has no rating from 1 to 5, its file is missing or
            damaged, it is listed twice, or only one class is left.
    """
    if ties not in TIES:
        raise InputError(f"ties must be one of {', '.join(TIES)}, got {ties!r}.")
    faults = Faults(skip_bad)
    source = read_source(folder, "nodules", faults=faults)
    cases, tied, total = [], 0, len(source.cases) + len(faults.sentences)
    for case in source.cases:
        with faults.caught():
            if "malignancy" in case:
                case["label"] = rated_class(case["malignancy"], ties)
            if skip_bad:  # else a damaged file is found where all voxels are read, once
                read_voxels(case, channel=None, spacing=[1.0, 1.0, 1.0], foreground=True)
            if case["label"] is None:
                tied += 1
            else:
                cases.append({**case, "stratum": source.classes[case["label"]]})
    if faults.sentences and not skip_bad:
        raise FaultyCases(faults.sentences, total)
    _check_cases(Path(folder).expanduser().resolve(), cases, source.classes)
    return Nodules(replace(source, cases=cases), tied, faults.sentences)


def prepare_nodules(
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    folds: int | None = None,
    fold: int = 0,
    cube_mm: float | None = None,
    ties: str | None = None,
    skip_bad: bool = False,
) -> Path:
    """Prepare nodules for classification, see :mod:`med3d_ext.tools.layouts.nodules` for the layouts.

    LIDC-IDRI as it is published is first made into such a folder, the output, see
    :func:`med3d_ext.tools.lidc.prepare.read_lidc`.

    The split is by patient (else scan, else content of the image) and by class. Where a mask is next to an image, its
    voxel count goes into the list: the evaluation's size-only baseline is made of it.

    Args:
        src: the source folder, or one that this has prepared before, for another fold or cube.
        output: folder for ``datalist.json`` and ``facts.json``.
        seed: seed of the split.
        folds: test on one of so many equal parts. Defaults to None: on a tenth.
        fold: which part, from 0 on.
        cube_mm: edge (mm) of the cube that the network sees. Defaults to 32, or the smallest image's extent.
        ties: what becomes of a median rating between 3 and 4: "exclude", "benign" or "malignant". Defaults to
            None: "exclude".
        skip_bad: leave out faulty nodules instead of refusing the folder; the summary line counts them.

    Returns:
        the output folder.

    Raises:
        InputError: when the source is refused, or ``cube_mm`` is no positive number.
    """
    if cube_mm is not None and not cube_mm > 0:
        raise InputError(f"cube_mm must be above 0, got {cube_mm}.")
    ties = ties or "exclude"
    src = nodules_folder(src, output, skip_bad)
    _check_ties(Path(src).expanduser(), ties)
    found = read_nodules(src, ties, skip_bad)
    domain = fingerprint_domain(found.source, [*known_cases(output), *known_cases(src)], foreground=True)
    split_cases({found.source.name: domain["cases"]}, seed, folds=folds, fold=fold)
    domain.update(summarize(domain["cases"]))
    domain["cube_mm"] = float(cube_mm) if cube_mm else _common_cube(domain["cases"])
    domain["intensity_range"] = list(INTENSITY_RANGE)
    domain |= {"ties": ties, "tied": found.tied, "skipped": len(found.skipped)}
    domain |= {"folds": folds, "fold": fold if folds else None}
    domain["options"] = {"seed": seed, "folds": folds, "fold": fold, "cube_mm": domain["cube_mm"], "ties": ties}
    write_prepared({found.source.name: domain}, Path(src).expanduser(), Path(output), seed, _remarks(found))
    return Path(output)


def _check_ties(src: Path, ties: str) -> None:
    """A prepared folder without its source's table has lost the tied nodules that it left out."""
    if any((src / name).is_file() for name in (TABLE, "dataset.json")) or facts_path(src) is None:
        return
    tied = next(iter(read_facts(src)["domains"].values())).get("tied", 0)
    if tied and ties != "exclude":
        raise InputError(f"'{src}' lacks the {tied} tied nodules of its source; give the source for --ties {ties}.")


def _common_cube(cases: list[dict[str, Any]]) -> float:
    """The usual edge, narrowed to what every image holds."""
    smallest = min(float(np.min(np.multiply(case["shape"], case["spacing"]))) for case in cases)
    return min(CUBE_MM, round(smallest, 3))


def _remarks(found: Nodules) -> str:
    for sentence in found.skipped:
        logger.warning(f"skipped: {sentence}")
    counts = [sum(case["label"] == value for case in found.source.cases) for value in found.source.classes]
    parts = [", ".join(f"{count} {name}" for count, name in zip(counts, found.source.classes.values()))]
    if found.tied:
        parts.append(f"{found.tied} left out (median rating between 3 and 4)")
    if found.skipped:
        parts.append(f"{len(found.skipped)} faulty skipped")
    return "; " + "; ".join(parts)


def _check_cases(root: Path, cases: list[dict[str, Any]], classes: Mapping[int, str]) -> None:
    (image, count) = next(iter(Counter(case["image"] for case in cases).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(f"'{image}' is listed {count} times in '{root}'; a nodule is one row: remove the others.")
    found = {case["label"] for case in cases}
    for value, name in classes.items():
        if value not in found:
            raise InputError(f"'{root}' holds no {name} nodule; both classes are needed to train and to measure.")
