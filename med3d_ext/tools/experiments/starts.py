"""What a comparison asks of a bundle, and what its arms start from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_ext.data.leakage import seen_cases
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, sha256
from med3d_ext.run.overrides import split_id
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.experiments.engine import CACHE
from med3d_ext.weights.initial import initial_weights_path
from med3d_ext.weights.loading import load_encoder

SCRATCH = "scratch"
# Options that a comparison sets itself, and what to type instead.
OWN = {
    "init": "--inits",
    "seed": "--seeds",
    "share": "--shares",
    "fold": "--folds",
    "output_dir": "--output",
    "ckpt_dir": "--output",
    "learning_rate": "no option: every arm has the bundle's rate for its initial weights",
    "bundle_root": "no option",
    CACHE: "no option: the arms share a cache",
}
NEEDED = ("init", "learning_rate", "seed", "epochs", "output_dir", "ckpt_dir", "dataset_dir", "data", "network_def")
# Where a bundle states the paper's rates (section 4.2), and what they are if it states none.
RATES = {"initial_weights::scratch_learning_rate": 0.01, "initial_weights::pretrained_learning_rate": 0.001}


def check_bundle(bundle: Bundle, options: Mapping[str, Any], more: Sequence[str]) -> None:
    """Stop if ``train.json`` lacks an id of ``NEEDED`` or ``more``, or an option is one that the comparison sets."""
    bundle.as_written("evaluate")  # refused now if it is missing
    for option in ("::".join(split_id(name)) for name in options):
        if option in OWN:
            raise InputError(f"a comparison sets {option} of each arm itself; give {OWN[option]}.")
    for name in (*NEEDED, *more):
        if name not in bundle.as_written("train"):
            raise InputError(
                f"bundle '{bundle.folder.name}' has no '{name}' at the top of its train.json; this comparison needs it."
            )
    bundle.refuse_unknown("train")


@dataclass(frozen=True)
class Start:
    """Initial weights and the learning rate that goes with them."""

    name: str  # a part of the arm's folder's
    init: str  # what the training gets, as ``learning_rate``
    learning_rate: float
    weights: Path | None = None  # the file behind ``init``; None from scratch

    def check(self, bundle: Bundle, data: PreparedData, output: Path) -> None:
        """Load the weights once, so that those of another network stop the comparison before its first arm."""
        if self.weights is not None:
            places = {"output_dir": str(output), "dataset_dir": str(data.folder)}
            share = bundle.value("train", "initial_weights::minimum_share", 0.95, **places)
            load_encoder(bundle.value("train", "network_def", **places), self.weights, share)

    def seen(self, test: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
        """The test cases that the weights have seen, by the card next to them; None without a card."""
        if self.weights is None:
            return []
        card = self.weights.parent / "card.json"
        known = seen_cases(card) if card.is_file() else None
        return None if known is None else [item for item in test if item["sha256"] in known]

    def facts(self, test: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What a comparison's JSON says about it."""
        if self.weights is None:
            return {"init": SCRATCH, "learning_rate": self.learning_rate}
        seen = self.seen(test)
        names = None if seen is None else sorted({case_name(item["image"]) for item in seen})
        file = {"weights": self.weights.name, "sha256": sha256(self.weights)}
        return {"init": self.name, "learning_rate": self.learning_rate, **file, "seen_test_cases": names}


def parse_starts(inits: Sequence[str], bundle: Bundle) -> list[Start]:
    """The arms of a comparison: from scratch at both rates, so that the rate alone explains no gain, then the others.

    Args:
        inits: ``scratch``, ``med3d``, the path of a weights file, or ``NAME=PATH``.
        bundle: the bundle, with its rates; the released encoder is looked for next to it.
    """
    rates = {name: bundle.value("train", name, default) for name, default in RATES.items()}
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise InputError(f"{name} of bundle '{bundle.folder.name}' must be a number above 0, got {rate!r}.")
    scratch_rate, pretrained_rate = map(float, rates.values())
    if SCRATCH not in inits:
        raise InputError(f"inits must include scratch, which the others are compared with, got {','.join(inits)}.")
    starts = [Start(f"{SCRATCH}_{rate:g}", SCRATCH, rate) for rate in dict.fromkeys([scratch_rate, pretrained_rate])]
    for text in (text for text in inits if text != SCRATCH):
        name, equals, value = text.partition("=")
        if not equals:
            name, value = ("med3d", "med3d") if text == "med3d" else (Path(text).name.split(".")[0], text)
        if not name.replace("_", "").replace("-", "").isalnum() or name.startswith(SCRATCH):
            raise InputError(f"inits must name weights as NAME=PATH, the name of letters and digits, got '{text}'.")
        path = initial_weights_path(value, bundle.folder)
        if path is None:
            raise InputError(f"inits must give weights as NAME=PATH, got '{text}'.")
        starts.append(Start(name, "med3d" if value == "med3d" else str(path.resolve()), pretrained_rate, path))
    names = [SCRATCH for text in inits if text == SCRATCH] + [start.name for start in starts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"inits must have different names, got '{twice}' twice; name a file as NAME=PATH.")
    return starts
