"""Leakage: which cases of a user's data list have the weights seen in training?"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import existing_file
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.facts import facts_path, weights_domains
from med3d_ext.io.files import case_name, read_json, sha256

logger = logging.getLogger("med3d_ext.evaluate")


def seen_cases(card: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every image that weights were trained on or chosen by, with a name to print, from ``card.json``."""
    splits = read_json(card).get("cases")
    if not isinstance(splits, dict) or not all(
        isinstance(cases, list) and all(isinstance(case, dict) and isinstance(case.get("image"), str) for case in cases)
        for cases in splits.values()
    ):
        raise InputError(f"'{card}' is not a card.json; give the one next to the weights.")
    seen: dict[str, str] = {}
    for split, case in ((split, case) for split, cases in splits.items() if split != "test" for case in cases):
        if not case.get("sha256"):
            raise InputError(f"'{card}' states no sha256 of '{case.get('image')}'; without it nothing can be compared.")
        seen.setdefault(case["sha256"], f"{os.path.basename(case['image'])} ({split}, {case.get('domain')})")
    return seen


def leakage(card: str, datalist: str) -> str:
    """List the cases of a data list that the weights have seen; images are compared by their files' SHA-256.

    The exit code is 1 when a test case was seen (a list without test cases counts as one whole test set), else 0. The
    same scan in a file that was written anew is not recognized.

    Args:
        card: the `card.json` next to the weights.
        datalist: a list of cases in the Decathlon's format.
    """
    seen, content = seen_cases(card), read_json(datalist)
    cases = []
    for split in SPLITS:
        for entry in content.get(split) or []:
            entry = entry if isinstance(entry, dict) else {"image": entry}
            if not isinstance(entry.get("image"), str):
                raise InputError(f"'{datalist}' has an entry without 'image' under '{split}'; complete it.")
            file = Path(datalist).parent / entry["image"]
            cases.append((split, entry["image"], entry.get("sha256") or sha256(existing_file(file, Path(datalist)))))
    if not cases:
        raise InputError(
            f"'{datalist}' lists no cases under {', '.join(SPLITS)}; give a list in the Decathlon's format."
        )
    measured = "test" if any(split == "test" for split, _, _ in cases) else None
    lines, leaks, others = [], 0, 0
    for split, image, digest in cases:
        if digest not in seen:
            continue
        leak = measured is None or split == measured
        leaks, others = leaks + leak, others + (not leak)
        lines.append(f"{'LEAK' if leak else 'seen'}  {split}: {image} is {seen[digest]}")
    total = sum(measured is None or split == measured for split, _, _ in cases)
    rest = f"; of {len(cases) - total} other cases, {others}" if measured else ""
    lines.append(f"of {total} {'test ' if measured else ''}cases, the weights have seen {leaks}{rest}")
    if leaks:
        print("\n".join(lines))
        raise SystemExit(1)
    return "\n".join(lines)


class Evaluated:
    """What must be known before the figures of an evaluation: cases that its weights have seen, classes of other names.

    Args:
        weights: the weights' file; the card and the facts next to it tell what they have seen and segment.
        data: the prepared data that is evaluated.
        num_classes: classes from this number on are not compared: a network of one target of LiTS's two. Defaults to
            None: all are.
    """

    def __init__(self, weights: str | os.PathLike, data: Any = None, num_classes: int | None = None) -> None:
        self.weights = Path(weights)
        self.data = data
        self.num_classes = num_classes

    def doubts(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What goes first into a summary, each also logged as a warning.

        Args:
            items: the evaluated dataset items; those without ``sha256`` are read for it.

        Returns:
            ``seen_by_weights``: names of the seen cases, None without a card; ``other_classes``: by domain the names in
            the weights and in the data if they differ.
        """
        card = self.weights.with_name("card.json")
        known = seen_cases(card) if card.is_file() else None
        names = None
        if known is not None:
            digests = [str(item.get("sha256") or sha256(item["image"])) for item in items]
            names = [case_name(item["image"]) for item, digest in zip(items, digests) if digest in known]
        if names:
            some = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
            logger.warning(
                f"the weights were trained on or chosen by {len(names)} of these {len(items)} cases ({some}): their "
                "figures say nothing about new cases"
            )
        others: dict[str, list[list[str]]] = {}
        is_compared = self.data is not None and facts_path(self.weights.parent) is not None
        trained = weights_domains(self.weights) if is_compared else {}
        for name, domain in self.data.domains.items() if is_compared else ():
            if name not in trained and len(trained) > 1:
                raise InputError(f"'{self.weights}' has no branch '{name}'; choose one of {', '.join(trained)}.")
            both = trained.get(name, next(iter(trained.values()))), domain
            ours, theirs = ([*each["classes"].values()][1 : self.num_classes] for each in both)
            if len(ours) != len(theirs):
                raise InputError(
                    f"'{self.weights}' segments {', '.join(ours)}, the labels of '{name}' are {', '.join(theirs)}; "
                    "give the data or the weights of this task."
                )
            if [each.casefold() for each in ours] != [each.casefold() for each in theirs]:
                others[name] = [ours, theirs]
                logger.warning(
                    f"the classes of the weights are {', '.join(ours)}, those of {name} {', '.join(theirs)}: "
                    "check that they mean the same"
                )
        return {"seen_by_weights": names, **({"other_classes": others} if others else {})}


def unseen(items: list[dict[str, Any]], weights: str | os.PathLike, split: str = "test") -> list[dict[str, Any]]:
    """The items of an evaluation, refused if the weights have seen one of them.

    Another ``--seed``, ``--folds`` or ``--fold`` than that of the training would test on cases that it trained on.

    Args:
        items: dataset items with ``sha256``.
        weights: the weights' file; the card next to it lists what they have seen. Without a card nothing is checked.
        split: what is evaluated; only "test" is checked.
    """
    card = Path(weights).with_name("card.json")
    if split != "test" or not card.is_file():
        return items
    seen = seen_cases(card)
    leaks = [item for item in items if item.get("sha256") in seen]
    if leaks:
        raise InputError(
            f"{len(leaks)} of {len(items)} test cases were seen in the training of '{weights}', "
            f"'{os.path.basename(leaks[0]['image'])}' among them; give the seed, folds and fold of that training."
        )
    return items
