"""What is next to the weights: the facts that inference reads, and the card that says what the weights saw."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import torch

import med3d_ext
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.handlers.base import Handler
from med3d_ext.io.facts import write_facts
from med3d_ext.io.files import case_name, sha256, write_json
from med3d_ext.transforms.sampling import size_of
from med3d_ext.weights.initial import InitialWeights
from med3d_ext.weights.loading import find_encoder


@dataclass(eq=False)
class WeightsCard(Handler):
    """Write ``facts.json`` when training starts and ``card.json`` after every epoch.

    The card lists the cases that the weights have seen (trained on or chosen by) with the SHA-256 of each image, so
    that anyone can tell whether a test case is among them.

    Args:
        ckpt_dir: folder of the weights.
        data: the run's data.
        dataset: the training data set; its items are the cases that are trained on.
        network_name: the encoder.
        init: the initial weights, as configured.
        spatial_size: the grid that the network is trained on, or a table from domain to grid.
        seed: the run's seed.
        evaluator: its metrics are the card's figures.
        facts: what else inference must know, written into every domain. Defaults to nothing.
        seen: further cases that the weights have seen, a list for each name; they come before those of this run.
            Defaults to none.
        initial: the initial weights, whose report is written when training starts. Defaults to none.
    """

    ckpt_dir: str
    data: PreparedData
    dataset: Any
    network_name: str
    init: str
    spatial_size: Sequence[int] | Mapping[str, Sequence[int]]
    seed: int = 0
    evaluator: Any = None
    facts: Mapping[str, Any] | None = None
    seen: Mapping[str, list[dict[str, Any]]] | None = None
    initial: InitialWeights | None = None

    def started(self, engine: Any) -> None:
        self.write_facts(engine)

    def epoch_completed(self, engine: Any) -> None:
        self.write_card(engine)

    def write_facts(self, engine: Any) -> None:
        """Spacing, classes and intensity of every domain, and the grid of the training."""
        domains = {
            name: {**domain, **(self.facts or {}), "spatial_size": size_of(self.spatial_size, {"domain": name})}
            for name, domain in self.data.domains.items()
        }
        write_facts(Path(self.ckpt_dir), {"domains": domains})
        if self.initial is not None:
            self.initial.write_report()

    def write_card(self, engine: Any) -> None:
        """Everything that is known about the weights so far."""
        judge: Any = None if self.evaluator is None else self.evaluator.state
        best = None  # until something was validated
        if judge is not None and judge.key_metric_name is not None and judge.best_metric_epoch >= 0:
            best = {"epoch": judge.best_metric_epoch, judge.key_metric_name: judge.best_metric}
        network = self.network_name
        if self.initial is not None and find_encoder(self.initial.network) is None:
            network = type(self.initial.network).__name__  # network_def was replaced by a network of another kind
        own, seen = self._own_cases, self.seen or {}
        card = {
            "network": network,
            "init": os.path.basename(self.init),
            "seed": self.seed,
            "epochs": engine.state.epoch,
            "lengths": getattr(engine.state, "lengths", None),  # several if --epochs changed on the way
            "versions": {each.__name__: each.__version__ for each in (med3d_ext, monai, torch)},
            "domains": sorted(self.data.domains),
            "best": best,
            "cases": {**own, **{name: cases for name, cases in seen.items() if name not in own}},
        }
        write_json(Path(self.ckpt_dir) / "card.json", card)

    @cached_property
    def _own_cases(self) -> dict[str, list[dict[str, Any]]]:
        """What was trained on and what was chosen by, without what was also trained on."""
        loader = getattr(self.evaluator, "data_loader", None)  # in a labelling server, its items are the server's
        validated = getattr(getattr(loader, "dataset", None), "data", None)
        validated = self.data.items("validation") if validated is None else validated
        cases: dict[str, list[dict[str, Any]]] = {}
        known: set[tuple] = set()
        for split, items in {"training": self.dataset.data, "validation": validated}.items():
            own = [_named_hash(item) for item in items]
            own = [case for case in own if (case["domain"], case["sha256"]) not in known]
            known |= {(case["domain"], case["sha256"]) for case in own}
            hashes = {case["sha256"] for case in own}
            earlier = (self.seen or {}).get(split, [])
            cases[split] = [*(case for case in earlier if case["sha256"] not in hashes), *own]
        return cases


def _named_hash(item: dict[str, Any]) -> dict[str, Any]:
    digest = item.get("sha256") or sha256(item["image"])  # a labelling server sends no digest
    return {"image": case_name(item["image"]), "domain": item.get("domain"), "sha256": digest}
