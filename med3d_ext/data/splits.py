"""The seeded split into training, validation and test: by subject, stratified, in folds where asked for."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json

SPLITS = ("training", "validation", "test")
Strata = list[set[str]]
"""Subjects of one domain, grouped by stratum."""


@cache
def held_out() -> frozenset[str]:
    """SHA-256 of the images that are test cases wherever they occur, so that no released encoder has seen them."""
    content = read_json(Path(__file__).with_name("held_out.json"))
    return frozenset(content["sha256"])


def split_cases(
    domains: dict[str, list[dict[str, Any]]],
    seed: int = 0,
    share: float = 0.1,
    folds: int | None = None,
    fold: int = 0,
) -> None:
    """Give every case a ``split``: 90 % training and 10 % test per domain (paper section 4.1), by subject.

    A subject is the case's ``subject`` where the list states one, else the content of its image: one scan that serves
    several domains is on one side in all of them. Where cases state a ``stratum`` (a modality, a class), each stratum
    of a domain is split by itself. Images in ``held_out.json`` are test; a stratum with none of them gives
    ``max(1, round(share * n))`` subjects, one with a single subject only trains. Of the subjects that are left for
    training, the same share (from ten on) becomes ``validation``, for the choice of the best epoch. The order of the
    domains and of their cases does not matter.

    With ``folds``, the test cases are instead one of so many equal parts; over all folds each subject is tested once.
    As many folds as subjects leave one out.

    Args:
        domains: domain name to cases; each case needs ``sha256``. The key ``split`` is written into each case.
        seed: seed of the draw.
        share: share of the test cases and of the validation cases.
        folds: number of parts. Defaults to None: no cross-validation.
        fold: which part is tested, from 0 on.

    Raises:
        InputError: ``folds`` is below 2 or above the number of a domain's subjects, or there is no such fold.
    """
    strata = {name: _strata(domains[name]) for name in sorted(domains)}
    if folds is None:
        reserved = _held_out_subjects(domains)
        test = set(reserved)
        for groups in strata.values():
            for members in groups:
                if len(members) > 1 and not members & reserved:
                    test |= _draw(members, test, share, seed)
    else:
        test = set[str]().union(*(_fold(name, groups, folds, fold, seed) for name, groups in strata.items()))
    validation = set[str]()
    for groups in strata.values():
        if sum(len(members - test) for members in groups) >= 10:
            for members in groups:
                if len(members - test) > 1:
                    validation |= _draw(members - test, validation, share, seed + 1)
    for cases in domains.values():
        for case in cases:
            subject = _subject(case)
            case["split"] = "test" if subject in test else "validation" if subject in validation else "training"


def _held_out_subjects(domains: dict[str, list[dict[str, Any]]]) -> set[str]:
    return {_subject(case) for cases in domains.values() for case in cases if case["sha256"] in held_out()}


def _strata(cases: list[dict[str, Any]]) -> Strata:
    """Each subject in one stratum: with cases of several, in the last of them."""
    stratum: dict[str, str] = {}
    for case in cases:
        subject = _subject(case)
        stratum[subject] = max(stratum.get(subject, ""), str(case.get("stratum", "")))
    groups: dict[str, set[str]] = defaultdict(set)
    for subject, name in stratum.items():
        groups[name].add(subject)
    return [groups[name] for name in sorted(groups)]


def _fold(domain: str, groups: Strata, folds: int, fold: int, seed: int) -> set[str]:
    """One of ``folds`` parts; the strata are dealt one after the other, so that every part has its share of each."""
    subjects = sum(map(len, groups))
    if not 2 <= folds <= subjects:
        raise InputError(f"folds must be from 2 to the {subjects} subjects of '{domain}', got {folds}.")
    if not 0 <= fold < folds:
        raise InputError(f"fold must be from 0 to {folds - 1}, got {fold}.")
    return set([subject for members in groups for subject in _shuffled(members, seed)][fold::folds])


def _draw(subjects: set[str], chosen: set[str], share: float, seed: int) -> set[str]:
    """What ``subjects`` lack of their share in ``chosen``, which other domains with the same scans have drawn."""
    lacking = max(1, round(share * len(subjects))) - len(subjects & chosen)
    return set(_shuffled(subjects - chosen, seed)[: max(0, lacking)])


def _shuffled(subjects: set[str], seed: int) -> list[str]:
    return sorted(subjects, key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest())


def _subject(case: dict[str, Any]) -> str:
    return str(case.get("subject", case["sha256"]))
