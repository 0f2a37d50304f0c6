"""``prepare``: a source folder becomes a datalist with a seeded split, and its facts."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.domains import merge_classes
from med3d_ext.data.fingerprint import summarize
from med3d_ext.data.prepared_data import LOCK_NAME
from med3d_ext.data.prepared_files import fingerprint_domain, known_cases, left_out, write_prepared
from med3d_ext.data.splits import split_cases
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import hold
from med3d_ext.io.store import Store, used
from med3d_ext.run.options import check_options
from med3d_ext.tools.layouts.prepare_3dseg8 import prepare_3dseg8
from med3d_ext.tools.layouts.prepare_lung import prepare_lung
from med3d_ext.tools.layouts.prepare_nodules import prepare_nodules
from med3d_ext.tools.layouts.table import channel_facts, one_channel, read_source

logger = logging.getLogger("med3d_ext.prepare")
LITS_WINDOW = (-200.0, 250.0)  # paper, section 4.3


def prepare_lits(
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    hu_window: Sequence[float] | None = None,
    skip_bad: bool = False,
    channel: str | int | None = None,
) -> Path:
    """Prepare a liver data set in any layout of an organ; tumor voxels count as liver in training.

    Args:
        src: the source folder.
        output: folder for ``datalist.json`` and ``facts.json``.
        seed: seed of the split.
        hu_window: intensity window (HU). Defaults to the paper's [-200, 250], narrowed to what the images hold: a CT
            that was cut at -125 HU gives other inputs under [-200, 250] than the same CT uncut.
        skip_bad: leave out faulty cases instead of refusing them all.
        channel: the channel of sets that have several, its name or number.

    Returns:
        the output folder.
    """
    faults = Faults(skip_bad)
    source = one_channel(read_source(src, faults=faults), channel)
    known = known_cases(output, source.channel)
    domain = fingerprint_domain(source, known, source.channel, foreground=True, faults=faults)
    faults.settle(len(domain["cases"]) + len(faults.sentences), logger)
    domain["classes"], domain["label_map"] = merge_classes(source.classes, source.merge)
    domain |= channel_facts(source)
    split_cases({source.name: domain["cases"]}, seed)
    domain.update(summarize(domain["cases"]))
    low, high = domain["intensity_observed"]
    domain["hu_window"] = list(hu_window) if hu_window else [max(LITS_WINDOW[0], low), min(LITS_WINDOW[1], high)]
    write_prepared({source.name: domain}, Path(src), Path(output), seed, left_out(faults))
    return Path(output)


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
        folds: lung, nodules: test on one of this many equal parts instead of a tenth.
        fold: lung, nodules: which part, from 0 on.
        cube_mm: nodules: edge of the network's cube in mm. Defaults to 32, or the smallest image's extent.
        ties: nodules: a median rating between 3 and 4 is left out (exclude), benign or malignant. Defaults to exclude.
        skip_bad: leave out faulty cases (nodules, lidc: scans, marks and nodules), list and count them.
        channel: 3dseg8, lits, lung: name or number of the channel to take of images that have several.
    """
    if kind not in PREPARE:
        raise InputError(f"prepare: KIND must be one of {', '.join(sorted(PREPARE))}, got '{kind}'.")
    options: dict[str, Any] = {"domains": domains, "domains_file": domains_file, "download": download or None}
    options["hu_window"] = None if hu_window is None else _window(hu_window)
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


def _window(text: str) -> list[float]:
    try:
        low, high = (float(part) for part in text.strip("[]()").split(","))
    except ValueError:
        raise InputError(f"prepare: --hu_window must be two numbers as -200,250, got '{text}'.") from None
    return [low, high]
