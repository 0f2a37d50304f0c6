"""Leakage: which cases of a user's data list have the weights seen in training?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import existing_file
from med3d_ext.data.fingerprint import sha256
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json


def seen_cases(card: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every image that weights were trained on or chosen by, with a name to print.

    Args:
        card: the ``card.json`` beside the weights, or a ``fingerprint.json``, whose test cases do not count.

    Raises:
        InputError: when the file is neither.
    """
    content = read_json(card)
    seen: dict[str, str] = {}
    if isinstance(content.get("cases"), dict):
        entries = [(split, case.get("domain"), case) for split, cases in content["cases"].items() for case in cases]
    elif isinstance(content.get("domains"), dict):
        domains = content["domains"].items()
        entries = [(case.get("split", "training"), name, case) for name, domain in domains for case in domain["cases"]]
    else:
        raise InputError(f"'{card}' is neither a card.json nor a fingerprint.json; give the one beside the weights.")
    for split, domain, case in entries:
        if split == "test":
            continue
        if not case.get("sha256"):
            raise InputError(f"'{card}' states no sha256 of '{case.get('image')}'; without it nothing can be compared.")
        seen.setdefault(case["sha256"], f"{os.path.basename(case['image'])} ({split}, {domain})")
    return seen


def listed_cases(datalist: str | os.PathLike) -> list[tuple[str, str, str]]:
    """Split, image and SHA-256 of every case of a list in the Decathlon's format.

    The digest is the list's own ``sha256``, else that of the file, found from the list's folder.

    Raises:
        InputError: when the list holds no cases or a file that it does not describe is missing.
    """
    content = read_json(datalist)
    cases = []
    for split in SPLITS:
        for entry in content.get(split) or []:
            entry = entry if isinstance(entry, dict) else {"image": entry}
            if not isinstance(entry.get("image"), str):
                raise InputError(f"'{datalist}' has an entry without 'image' under '{split}'; complete it.")
            cases.append((split, entry["image"], entry.get("sha256") or _digest(Path(datalist), entry)))
    if not cases:
        raise InputError(
            f"'{datalist}' lists no cases under {', '.join(SPLITS)}; give a list in the Decathlon's format."
        )
    return cases


def _digest(datalist: Path, entry: dict[str, Any]) -> str:
    return sha256(existing_file(datalist.parent / entry["image"], datalist))


def leakage(card: str, datalist: str) -> str:
    """Tell which cases of a data list the weights have seen; images are compared by their files' SHA-256.

    The exit code is 1 when a test case was seen (a list without test cases counts as one whole test set), else 0. The
    same scan in a file that was written anew is not recognized.

    Args:
        card: `card.json` or `fingerprint.json` beside the weights.
        datalist: a list of cases in the Decathlon's format.
    """
    seen, cases = seen_cases(card), listed_cases(datalist)
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


def unseen(items: list[dict[str, Any]], weights: str | os.PathLike, split: str = "test") -> list[dict[str, Any]]:
    """The items of an evaluation, refused where the weights have seen one of them.

    Another ``--seed``, ``--folds`` or ``--fold`` than that of the training would test on cases that it trained on.

    Args:
        items: dataset items with ``sha256``.
        weights: the weights' file; the card beside it tells what they have seen. Without a card nothing is checked.
        split: what is evaluated; only "test" is checked.

    Raises:
        InputError: the weights have seen a test case.
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
