"""``prepare``: a source folder becomes a datalist with a seeded split, and its facts."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.data.domains import merge_classes
from med3d_ext.data.prepared_data import LOCK_NAME
from med3d_ext.data.prepared_files import Facts, prepare_domains
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.facts import facts_path, read_facts
from med3d_ext.io.files import hold
from med3d_ext.io.store import Store, used
from med3d_ext.run.options import check_options
from med3d_ext.tools.layouts.lung import lung_classes
from med3d_ext.tools.layouts.nodules import TABLE, TIES, with_classes
from med3d_ext.tools.layouts.prepare_3dseg8 import prepare_3dseg8
from med3d_ext.tools.layouts.table import one_channel, read_source
from med3d_ext.tools.lidc.prepare import nodules_folder

logger = logging.getLogger("med3d_ext.prepare")
LITS_WINDOW = (-200.0, 250.0)  # paper, section 4.3
CUBE_MM = 32.0  # holds LIDC's nodules of 3 to 30 mm, and little else: the network pools over all of it
INTENSITY_RANGE = (-1000.0, 400.0)  # HU; what lies beyond is air and bone, and the percentiles should not depend on it


def prepare_lits(
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    hu_window: Sequence[float] | None = None,
    skip_bad: bool = False,
    channel: str | int | None = None,
) -> Path:
    """A liver data set in any layout of an organ; tumor voxels count as liver in training.

    The window (HU) is the paper's [-200, 250], narrowed to what the images hold: a CT that was cut at -125 HU gives
    other inputs under [-200, 250] than the same CT uncut.
    """
    faults = Faults(skip_bad)
    source = one_channel(read_source(src, faults=faults), channel)
    classes, label_map = merge_classes(source.classes, source.merge)

    def facts(name: str, domain: Facts) -> Facts:
        low, high = domain["intensity_observed"]
        window = hu_window or (max(LITS_WINDOW[0], low), min(LITS_WINDOW[1], high))
        return {"classes": classes, "label_map": label_map, "hu_window": list(window)}

    return prepare_domains({source.name: source}, facts, src, output, seed, faults)


def prepare_lung(
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    num_classes: int = 2,
    folds: int | None = None,
    fold: int = 0,
    skip_bad: bool = False,
    channel: str | int | None = None,
) -> Path:
    """A lung data set (paper, section 4.2): each modality gives its share of training and test cases.

    ``src`` may also be a folder that this has prepared before, for another split or other classes; label maps that are
    merged from masks go to ``labels/`` in the output.
    """
    if num_classes not in (2, 3):
        raise InputError(f"num_classes must be 2 (lung) or 3 (right and left lung), got {num_classes!r}.")
    faults = Faults(skip_bad)
    source = one_channel(read_source(src, "lung", output, faults), channel)
    for case in source.cases:
        case["modality"] = str(case.get("modality") or source.modality.get(0, "image"))
        case.setdefault("stratum", case["modality"])
    classes, label_map = lung_classes(source.classes, num_classes, src)

    def facts(name: str, domain: Facts) -> Facts:
        options = {"seed": seed, "num_classes": num_classes, "folds": folds, "fold": fold}
        return {"label_names": domain["classes"], "classes": classes, "label_map": label_map, "options": options}

    return prepare_domains({source.name: source}, facts, src, output, seed, faults, folds=folds, fold=fold)


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
    """Nodules for classification; LIDC-IDRI as it is published is first made into a folder of them, the output.

    ``src`` may also be a folder that this has prepared before, for another fold or cube. The split is by patient (else
    scan, else content of the image) and by class. If a mask is next to an image, its voxel count goes into the list:
    the evaluation's size-only baseline is made of it.
    """
    if cube_mm is not None and not cube_mm > 0:
        raise InputError(f"cube_mm must be above 0, got {cube_mm}.")
    ties = ties or "exclude"
    if ties not in TIES:
        raise InputError(f"ties must be one of {', '.join(TIES)}, got {ties!r}.")
    src = nodules_folder(src, output, skip_bad)
    # A prepared folder without its source's table has lost the tied nodules that it left out.
    if not any((src / name).is_file() for name in (TABLE, "dataset.json")) and facts_path(src) is not None:
        lost = next(iter(read_facts(src)["domains"].values())).get("tied", 0)
        if lost and ties != "exclude":
            raise InputError(f"'{src}' lacks the {lost} tied nodules of its source; give the source for --ties {ties}.")
    faults = Faults(skip_bad)
    rated = read_source(src, "nodules", faults=faults)
    source = with_classes(rated, ties)
    tied = len(rated.cases) - len(source.cases)
    counts: dict[int, int] = {}

    def count(cases: Sequence[Facts]) -> None:
        for value, title in source.classes.items():
            counts[value] = sum(case["label"] == value for case in cases)
            if not counts[value]:
                raise InputError(f"'{src}' holds no {title} nodule; both classes are needed to train and to measure.")

    def facts(name: str, domain: Facts) -> Facts:
        cases = domain["cases"]
        count(cases)
        smallest = min(float(np.min(np.multiply(case["shape"], case["spacing"]))) for case in cases)
        edge = float(cube_mm) if cube_mm else min(CUBE_MM, round(smallest, 3))  # what every image holds
        return {
            "cube_mm": edge,
            "intensity_range": list(INTENSITY_RANGE),
            "ties": ties,
            "tied": tied,
            "skipped": len(faults.sentences),
            "folds": folds,
            "fold": fold if folds else None,
            "options": {"seed": seed, "folds": folds, "fold": fold, "cube_mm": edge, "ties": ties},
        }

    def remarks() -> str:
        found = ", ".join(f"{counts[value]} {title}" for value, title in source.classes.items())
        return f"; {found}" + (f"; {tied} left out (median rating between 3 and 4)" if tied else "")

    if not faults.sentences or skip_bad:  # else the faulty nodules are what is wrong, and are listed
        count(source.cases)
    return prepare_domains({source.name: source}, facts, src, output, seed, faults, remarks, folds=folds, fold=fold)


PREPARE: dict[str, Callable[..., Path]] = {
    "3dseg8": prepare_3dseg8,
    "lits": prepare_lits,
    "lung": prepare_lung,
    "nodules": prepare_nodules,
    "lidc": prepare_nodules,
}


def prepare_folder(kind: str, src: str | os.PathLike, output: str | os.PathLike, seed: int, **options: Any) -> Path:
    """Prepare a folder while no other process does, see :data:`PREPARE`; in vain, it leaves nothing behind."""
    path = Path(output).expanduser() / LOCK_NAME
    was_there = path.parent.is_dir(), path.exists()
    try:
        with hold(path), used(Store()):
            return PREPARE[kind](src, output, seed, **options)
    except BaseException:
        with contextlib.suppress(OSError):
            if not was_there[1]:
                path.unlink()
            if not was_there[0]:
                path.parent.rmdir()  # unless label maps were merged into it
        raise


def prepare(
    kind: str,
    src: str,
    *,
    output: str | None = None,
    seed: int = 0,
    domains: str | None = None,
    domains_file: str | None = None,
    download: bool = False,
    hu_window: str | None = None,
    num_classes: int | None = None,
    folds: int | None = None,
    fold: int | None = None,
    cube_mm: float | None = None,
    ties: str | None = None,
    skip_bad: bool = False,
    channel: str | None = None,
) -> str:
    """Turn a source folder into `datalist.json` (with a seeded split) and `facts.json`.

    Args:
        kind: 3dseg8, lits, lung, nodules or lidc.
        src: the source folder.
        output: where to write. Defaults to the source folder.
        seed: seed of the split.
        domains: 3dseg8: the domains to prepare, joined by commas, or how many. Defaults to all.
        domains_file: 3dseg8: JSON with your own domains. Defaults to `domains.json` in the source folder.
        download: 3dseg8: fetch the Decathlon's tasks that the source folder lacks.
        hu_window: lits: lowest and highest HU, as -200,250. Defaults to the paper's, narrowed to the images' range.
        num_classes: lung: 2 for lung, 3 for right and left lung. Defaults to 2.
        folds: 3dseg8, lung, nodules: test on one of this many equal parts instead of a tenth.
        fold: 3dseg8, lung, nodules: which part, from 0 on.
        cube_mm: nodules: edge of the network's cube in mm. Defaults to 32, or the smallest image's extent.
        ties: nodules: a median rating between 3 and 4 is left out (exclude), benign or malignant. Defaults to exclude.
        skip_bad: leave out faulty cases (nodules, lidc: scans, marks and nodules), list and count them.
        channel: 3dseg8, lits, lung: name or number of the channel to take of images that have several; 3dseg8 of a
            bundle of several channels: `all`.
    """
    if kind not in PREPARE:
        raise InputError(f"prepare: KIND must be one of {', '.join(sorted(PREPARE))}, got '{kind}'.")
    options: dict[str, Any] = {"domains": domains, "domains_file": domains_file, "download": download or None}
    if hu_window is not None:
        try:
            low, high = map(float, hu_window.strip("[]()").split(","))
        except ValueError:
            raise InputError(f"prepare: --hu_window must be two numbers as -200,250, got '{hu_window}'.") from None
        options["hu_window"] = [low, high]
    options |= {"num_classes": num_classes, "folds": folds, "fold": fold}
    options |= {"cube_mm": cube_mm, "ties": ties, "skip_bad": skip_bad or None, "channel": channel}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in inspect.signature(PREPARE[kind]).parameters:
            raise InputError(f"prepare: --{name} is not an option of {kind}; leave it out.")
    check_options({"seed": seed, **given})
    if fold is not None and folds is None:
        raise InputError(f"prepare: --fold {fold} is one of how many? Give --folds, too.")
    folder = prepare_folder(kind, src, output or src, seed, **given)
    return f"datalist.json and facts.json are in {folder}"
