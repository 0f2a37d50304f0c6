"""``prepare lung``: CT and MR of the chest or the whole body into one datalist, split by modality."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from med3d_ext.data.datalists import Source
from med3d_ext.data.fingerprint import summarize
from med3d_ext.data.prepared_files import fingerprint_domain, known_cases, left_out, write_prepared
from med3d_ext.data.splits import split_cases
from med3d_ext.errors import Faults, InputError
from med3d_ext.tools.layouts.lung_labels import check_num_classes, lung_classes
from med3d_ext.tools.layouts.table import channel_facts, one_channel, read_source

logger = logging.getLogger("med3d_ext.prepare")


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
    """Prepare a lung data set (paper, section 4.2): each modality gives its share of training and test cases.

    Args:
        src: a folder in a layout of :mod:`med3d_ext.tools.layouts.table` with a lung among its classes, VISCERAL's or
            TotalSegmentator's data set, or a folder that this has prepared before, for another split or other classes.
        output: folder for ``datalist.json`` and ``facts.json``, and for ``labels/`` where masks are merged.
        seed: seed of the split.
        num_classes: 2 for background and lung, 3 for background, right and left lung.
        folds: number of parts of a cross-validation. Defaults to None: 10 % are test.
        fold: the part that is tested, from 0 on.
        skip_bad: leave out faulty cases instead of refusing them all.
        channel: the channel of sets that have several, its name or number.

    Returns:
        the output folder.

    Raises:
        InputError: see :func:`read_lung`, :func:`lung_classes` and :func:`split_cases`.
    """
    check_num_classes(num_classes)
    _check_folds(folds, fold)
    faults = Faults(skip_bad)
    source = read_lung(src, output, faults, channel)
    classes, label_map = lung_classes(source.classes, num_classes, src)
    known = [*known_cases(output, source.channel), *known_cases(src, source.channel)]
    domain = fingerprint_domain(source, known, source.channel, foreground=True, faults=faults)
    faults.settle(len(domain["cases"]) + len(faults.sentences), logger)
    for case in domain["cases"]:
        case.setdefault("stratum", case["modality"])
    split_cases({source.name: domain["cases"]}, seed, folds=folds, fold=fold)
    domain |= {
        "label_names": domain["classes"],
        "classes": classes,
        "label_map": label_map,
        **summarize(domain["cases"]),
        **channel_facts(source, seed=seed, num_classes=num_classes, folds=folds, fold=fold),
    }
    write_prepared({source.name: domain}, Path(src), Path(output), seed, left_out(faults))
    return Path(output)


def _check_folds(folds: int | None, fold: int) -> None:
    """What can be told before the data are read."""
    for name, value in (("folds", folds), ("fold", fold)):
        if value is not None and not isinstance(value, int):
            raise InputError(f"{name} must be a whole number, got {value!r}.")
    if folds is None and fold:
        raise InputError(f"fold {fold} needs the number of parts; add --folds.")


def read_lung(
    src: str | os.PathLike,
    output: str | os.PathLike,
    faults: Faults | None = None,
    channel: str | int | None = None,
) -> Source:
    """The cases of a lung data set, each with its ``modality``, as its entry or else the folder states it.

    Args:
        src: the source folder.
        output: folder of the preparation; label maps that are merged from masks go to ``labels/`` in it.
        faults: collects the faulty cases. Defaults to None, which refuses them.
        channel: the channel of a set that has several.

    Raises:
        InputError: see :func:`med3d_ext.tools.layouts.table.read_source`.
    """
    source = one_channel(read_source(src, "lung", output, faults), channel)
    for case in source.cases:
        case["modality"] = str(case.get("modality") or source.modality.get(0, "image"))
    return source
