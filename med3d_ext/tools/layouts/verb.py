"""The verb ``prepare``."""

from __future__ import annotations

import inspect
from typing import Any

from med3d_ext.data.prepare import PREPARE, prepare_folder
from med3d_ext.errors import InputError


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
) -> str:
    """Turn a source folder into `datalist.json` (with a seeded split) and `fingerprint.json`.

    Args:
        kind: 3dseg8, lits, lung, nodules or lidc.
        src: the source folder.
        output: where to write. Defaults to the source folder.
        seed: seed of the split.
        domains: 3dseg8: the domains to prepare, joined by commas, or how many. Defaults to all.
        domains_file: 3dseg8: JSON with domains of your own. Defaults to `domains.json` in the source folder.
        download: 3dseg8: fetch the Decathlon's tasks that the source folder lacks.
        hu_window: lits: lowest and highest HU, as -200,250. Defaults to the paper's, narrowed to what the images hold.
        num_classes: lung: 2 for lung, 3 for right and left lung. Defaults to 2.
        folds: lung, nodules: test on one of so many equal parts instead of a tenth.
        fold: lung, nodules: which part, from 0 on.
        cube_mm: nodules: edge of the network's cube in mm. Defaults to 32, narrowed to what the images hold.
        ties: nodules: a median rating between 3 and 4 is left out (exclude), benign or malignant. Defaults to exclude.
        skip_bad: leave out faulty cases (nodules, lidc: scans, marks and nodules), name and count them.
    """
    if kind not in PREPARE:
        raise InputError(f"prepare: KIND must be one of {', '.join(sorted(PREPARE))}, got '{kind}'.")
    options: dict[str, Any] = {"domains": domains, "domains_file": domains_file, "download": download or None}
    options["hu_window"] = None if hu_window is None else _window(hu_window)
    options |= {"num_classes": num_classes, "folds": folds, "fold": fold}
    options |= {"cube_mm": cube_mm, "ties": ties, "skip_bad": skip_bad or None}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in inspect.signature(PREPARE[kind]).parameters:
            raise InputError(f"prepare: --{name} is no option of {kind}; leave it out.")
    folder = prepare_folder(kind, src, output or src, seed, **given)
    return f"datalist.json and fingerprint.json are in {folder}"


def _window(text: str) -> list[float]:
    try:
        low, high = (float(part) for part in text.strip("[]()").split(","))
    except ValueError:
        raise InputError(f"prepare: --hu_window must be two numbers as -200,250, got '{text}'.") from None
    return [low, high]
