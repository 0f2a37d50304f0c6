"""What the arms of a comparison start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_ext.data.fingerprint import sha256
from med3d_ext.data.leakage import seen_cases
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name
from med3d_ext.weights.initial import initial_weights_path

SCRATCH = "scratch"


@dataclass(frozen=True)
class Start:
    """Initial weights and the learning rate that goes with them.

    Args:
        name: the arm's name, a part of its folder's.
        init: what the training gets as ``init``.
        learning_rate: what it gets as ``learning_rate``.
        weights: the file behind ``init``; None from scratch.
    """

    name: str
    init: str
    learning_rate: float
    weights: Path | None = None

    @property
    def is_scratch(self) -> bool:
        """Whether the arm is one of those that the others are compared with."""
        return self.weights is None

    @property
    def card(self) -> Path | None:
        """The card beside the weights, which lists the cases they have seen."""
        path = None if self.weights is None else self.weights.parent / "card.json"
        return path if path is not None and path.is_file() else None


def parse_starts(
    inits: Sequence[str], bundle: str | os.PathLike, scratch_rate: float, pretrained_rate: float
) -> list[Start]:
    """The arms of a comparison: from scratch at both rates, so that the rate alone explains no gain, then the others.

    Args:
        inits: ``scratch``, ``med3d``, the path of a weights file, or ``NAME=PATH``.
        bundle: the bundle's folder; the released encoder is looked for beside it.
        scratch_rate: the bundle's learning rate from scratch.
        pretrained_rate: its learning rate for pretrained weights.

    Raises:
        InputError: ``scratch`` is missing, a name comes twice, or a file is none.
    """
    if SCRATCH not in inits:
        raise InputError(f"inits must hold scratch, which the others are compared with, got {','.join(inits)}.")
    rates = dict.fromkeys([scratch_rate, pretrained_rate])
    starts = [Start(f"{SCRATCH}_{rate:g}", SCRATCH, rate) for rate in rates]
    for text in inits:
        if text != SCRATCH:
            starts.append(_pretrained(text, bundle, pretrained_rate))
    names = [start.name for start in starts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or len(set(inits)) < len(inits):
        name = twice or SCRATCH
        raise InputError(f"inits must have different names, got '{name}' twice; name a file as NAME=PATH.")
    return starts


def _pretrained(text: str, bundle: str | os.PathLike, rate: float) -> Start:
    name, equals, value = text.partition("=")
    if not equals:
        name, value = ("med3d", "med3d") if text == "med3d" else (Path(text).name.split(".")[0], text)
    if not name.replace("_", "").replace("-", "").isalnum() or name.startswith(SCRATCH):
        raise InputError(f"inits must name weights as NAME=PATH, the name of letters and digits, got '{text}'.")
    path = initial_weights_path(value, bundle)
    if path is None:
        raise InputError(f"inits must give weights as NAME=PATH, got '{text}'.")
    return Start(name, "med3d" if value == "med3d" else str(path.resolve()), rate, path)


def seen_by(start: Start, test: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The test cases that the weights of a start have seen; None where no card tells.

    Args:
        start: the start.
        test: the test cases of all folds, as :meth:`med3d_ext.data.PreparedData.items` gives them.
    """
    if start.card is None:
        return [] if start.is_scratch else None
    known = seen_cases(start.card)
    return [item for item in test if item["sha256"] in known]


def start_facts(start: Start, test: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a comparison's JSON says about a start; arguments as of :func:`seen_by`."""
    if start.weights is None:
        return {"init": SCRATCH, "learning_rate": start.learning_rate}
    seen = seen_by(start, test)
    return {
        "init": start.name,
        "learning_rate": start.learning_rate,
        "weights": start.weights.name,
        "sha256": sha256(start.weights),
        "seen_test_cases": None if seen is None else sorted({case_name(item["image"]) for item in seen}),
    }
