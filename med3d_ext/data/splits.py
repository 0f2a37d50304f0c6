"""The seeded split into training, validation and test: by subject, stratified, in folds; shares of the cases."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json

logger = logging.getLogger("med3d_ext.prepare")
SHARE = 0.1  # of the subjects for test, and of the others for validation (paper, section 4.1)
SPLITS = ("training", "validation", "test")


@cache
def held_out() -> frozenset[str]:
    """SHA-256 of the images that are test cases wherever they occur, so that no released encoder has seen them."""
    return frozenset(read_json(Path(__file__).with_name("held_out.json"))["sha256"])


def split_cases(
    domains: dict[str, list[dict[str, Any]]], seed: int = 0, folds: int | None = None, fold: int = 0
) -> None:
    """Give every case a ``split``: 90 % training and 10 % test per domain (paper section 4.1), by subject.

    A subject is the case's ``subject``, else the content of its image: one scan that serves several domains is on one
    side in all of them. If cases state a ``stratum`` (a modality, a class), each stratum of a domain is split by
    itself. Images in ``held_out.json`` are test; a stratum with none of them gives ``max(1, round(0.1 * n))``
    subjects, one with a single subject only trains. Of the subjects that are left for training, the same share (from
    ten on) becomes ``validation``, for the choice of the best epoch. The order of the domains and of their cases does
    not matter.

    A split that cases state wins: under ``given`` the list that they are in, or under ``fold`` a number, of which 0 is
    validation. In such a domain only validation cases are drawn, from the training cases, if none are given; a scan
    that is in another domain, too, is on the given side there. With ``folds``, the test cases are instead one of so
    many equal parts (as many as subjects leave one out); if cases state a ``fold``, that is the part.

    Args:
        domains: domain name to cases; each case needs ``sha256``. The key ``split`` is written into each case.
        seed: seed of the draw.
        folds: number of parts. Defaults to None: no cross-validation.
        fold: which part is tested, from 0 on.
    """
    strata = {name: _strata(domains[name]) for name in sorted(domains)}
    given = {name: _given_sides(name, domains[name], folds) for name in strata}
    sides: dict[str, str] = {}
    for name, own in given.items():
        for image, side in own.items():
            if sides.setdefault(image, side) != side:
                raise InputError(f"the list of '{name}' gives an image as {side} that another gives as {sides[image]}.")
    fixed: dict[str, set[str]] = {split: set() for split in SPLITS}
    reserved, trained = set(), set()
    for name, cases in domains.items():
        for case in cases:
            if case["sha256"] in sides:
                fixed[sides[case["sha256"]]].add(_subject(case))
            if case["sha256"] in held_out():
                reserved.add(_subject(case))
            # Given as training next to given validation cases: so they stay, in other domains, too.
            if "validation" in given[name].values() and given[name].get(case["sha256"]) == "training":
                trained.add(_subject(case))
    test = set(fixed["test"])
    if folds is None:
        test |= reserved
        for members in (members for name, groups in strata.items() if not given[name] for members in groups):
            members = members - fixed["training"] - fixed["validation"]
            if len(members) > 1 and not members & reserved:
                test |= _draw(members, test, seed)
    else:
        test |= set().union(*(_fold(name, strata[name], folds, fold, seed, domains[name]) for name in strata))
    validation = fixed["validation"] - test
    for name, groups in strata.items():
        left = [members - test - trained for members in groups]
        if "validation" not in given[name].values() and sum(map(len, left)) >= 10:
            for members in left:
                if len(members) > 1:
                    validation |= _draw(members, validation, seed + 1)
    for name, cases in domains.items():
        for case in cases:
            subject, stated = _subject(case), sides.get(case["sha256"])
            drawn = "test" if subject in test else "validation" if subject in validation else "training"
            may_validate = stated == "training" and "validation" not in given[name].values()
            case["split"] = drawn if stated is None or (may_validate and drawn != "test") else stated


def _given_sides(domain: str, cases: list[dict[str, Any]], folds: int | None) -> dict[str, str]:
    """Image (SHA-256) to the split that the list of a domain gives it; empty if the list gives none."""
    numbers = {case["fold"] for case in cases if "fold" in case}
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise InputError(f"'fold' of each case of '{domain}' must be a whole number, got {sorted(map(str, numbers))}.")
    if any("given" in case for case in cases):
        if folds is not None or len(numbers) > 1:
            other = f"--folds {folds}" if folds is not None else "'fold' of its cases"
            raise InputError(
                f"the list of '{domain}' gives validation or test cases, and {other} another split; drop one."
            )
        stated = [case["given"] for case in cases]
    elif len(numbers) > 1 and folds is None:
        stated = ["validation" if case.get("fold") == 0 else "training" for case in cases]
    else:
        return {}
    sides: dict[str, str] = {}
    by_subject: dict[str, str] = {}
    for case, side in zip(cases, stated):
        if (other := sides.setdefault(case["sha256"], side)) != side:
            raise InputError(f"'{case['image']}' of '{domain}' is given as {other} and as {side}; drop one.")
        if side != "test" and case["sha256"] in held_out():
            raise InputError(
                f"'{case['image']}' is given as {side}, and it is a test case of every bundle here (held_out.json); "
                "list it under 'test', or leave it out."
            )
        if (other := by_subject.setdefault(_subject(case), side)) != side:
            logger.warning(f"'{_subject(case)}' of '{domain}' has scans in {other} and in {side}")
    return sides


def _strata(cases: list[dict[str, Any]]) -> list[set[str]]:
    """The subjects by stratum, each in one: with cases of several, in the last of them."""
    stratum: dict[str, str] = {}
    for case in cases:
        subject = _subject(case)
        stratum[subject] = max(stratum.get(subject, ""), str(case.get("stratum", "")))
    groups: dict[str, set[str]] = defaultdict(set)
    for subject, name in stratum.items():
        groups[name].add(subject)
    return [groups[name] for name in sorted(groups)]


def _fold(
    domain: str, groups: list[set[str]], folds: int, fold: int, seed: int, cases: list[dict[str, Any]]
) -> set[str]:
    """One of ``folds`` parts; the strata are dealt one after the other, so that every part has its share of each."""
    numbers = sorted({case["fold"] for case in cases if "fold" in case})
    if len(numbers) > 1:
        if numbers != list(range(folds)) or fold not in numbers:
            raise InputError(f"the cases of '{domain}' are in the folds {numbers}; --folds and --fold must fit them.")
        return {_subject(case) for case in cases if case.get("fold") == fold}
    subjects = sum(map(len, groups))
    if not 2 <= folds <= subjects:
        raise InputError(f"folds must be from 2 to the {subjects} subjects of '{domain}', got {folds}.")
    if not 0 <= fold < folds:
        raise InputError(f"fold must be from 0 to {folds - 1}, got {fold}.")
    return set([subject for members in groups for subject in _shuffled(members, seed)][fold::folds])


def _draw(subjects: set[str], chosen: set[str], seed: int) -> set[str]:
    """What ``subjects`` lack of their share in ``chosen``, which other domains with the same scans have drawn."""
    lacking = max(1, round(SHARE * len(subjects))) - len(subjects & chosen)
    return set(_shuffled(subjects - chosen, seed)[: max(0, lacking)])


def _shuffled(subjects: set[str], seed: int) -> list[str]:
    return sorted(subjects, key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest())


def _subject(case: dict[str, Any]) -> str:
    return str(case.get("subject", case["sha256"]))


def nested_share(items: Sequence[dict[str, Any]], share: float, seed: int = 0) -> list[dict[str, Any]]:
    """A share (above 0 to 1) of each domain's items, at least one; a larger share holds every smaller one.

    One scan of several domains is as early in each of them (paper, section 4.1 and figure 4).
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, the share of the training cases, got {share}.")
    ranked: dict[str, list[dict[str, Any]]] = {}
    for item in sorted(items, key=lambda item: hashlib.sha256(f"{seed}/share/{item['sha256']}".encode()).hexdigest()):
        ranked.setdefault(item["domain"], []).append(item)
    kept = {id(item) for each in ranked.values() for item in each[: max(1, round(share * len(each)))]}
    return [item for item in items if id(item) in kept]
