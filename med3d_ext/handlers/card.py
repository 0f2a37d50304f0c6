"""What is next to the weights: the facts that inference reads, and the card that says what the weights saw."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Events

import med3d_ext
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.io.facts import write_facts
from med3d_ext.io.files import case_name, sha256, write_json
from med3d_ext.transforms.sampling import size_of
from med3d_ext.weights.initial import InitialWeights
from med3d_ext.weights.loading import find_encoder


class WeightsCard:
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

    def __init__(
        self,
        ckpt_dir: str,
        data: PreparedData,
        dataset: Any,
        network_name: str,
        init: str,
        spatial_size: Sequence[int] | Mapping[str, Sequence[int]],
        seed: int = 0,
        evaluator: Any = None,
        facts: Mapping[str, Any] | None = None,
        seen: Mapping[str, list[dict[str, Any]]] | None = None,
        initial: InitialWeights | None = None,
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.data = data
        self.dataset = dataset
        if initial is not None and find_encoder(initial.network) is None:
            network_name = type(initial.network).__name__  # network_def was replaced by a network of another kind
        self.facts = {"network": network_name, "init": os.path.basename(init), "seed": seed}
        self.spatial_size = spatial_size
        self.evaluator = evaluator
        self.initial = initial
        self.domain_facts, self.seen = dict(facts or {}), dict(seen or {})

    def attach(self, engine: Any) -> None:
        """Register with the trainer, after the handlers that validate and save."""
        if engine.state.rank == 0:
            engine.add_event_handler(Events.STARTED, self.write_facts)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write_card)

    def write_facts(self, engine: Any) -> None:
        """Spacing, classes and intensity of every domain, and the grid of the training."""
        domains = {
            name: {**domain, **self.domain_facts, "spatial_size": size_of(self.spatial_size, {"domain": name})}
            for name, domain in self.data.domains.items()
        }
        write_facts(self.ckpt_dir, {"domains": domains})
        if self.initial is not None:
            self.initial.write_report()

    def write_card(self, engine: Any) -> None:
        """Everything that is known about the weights so far."""
        write_json(
            self.ckpt_dir / "card.json",
            {
                **self.facts,
                "epochs": engine.state.epoch,
                "lengths": getattr(engine.state, "lengths", None),  # several where --epochs changed on the way
                "versions": {
                    "med3d_ext": med3d_ext.__version__,
                    "monai": monai.__version__,
                    "torch": torch.__version__,
                },
                "domains": sorted(self.data.domains),
                "best": self._best(),
                "cases": {**self._own_cases, **{name: self.seen[name] for name in self.seen.keys() - self._own_cases}},
            },
        )

    @cached_property
    def _own_cases(self) -> dict[str, list[dict[str, Any]]]:
        """What was trained on and what was chosen by, without what was also trained on."""
        loader = getattr(self.evaluator, "data_loader", None)  # in a labelling server, its items are the server's
        validated = getattr(getattr(loader, "dataset", None), "data", None)
        validated = self.data.items("validation") if validated is None else validated
        cases: dict[str, list[dict[str, Any]]] = {}
        known: set[tuple] = set()
        for split, items in {"training": self.dataset.data, "validation": validated}.items():
            own = [named_hash(item) for item in items]
            own = [case for case in own if (case["domain"], case["sha256"]) not in known]
            known |= {(case["domain"], case["sha256"]) for case in own}
            hashes = {case["sha256"] for case in own}
            cases[split] = [*(case for case in self.seen.get(split, []) if case["sha256"] not in hashes), *own]
        return cases

    def _best(self) -> dict[str, Any] | None:
        state: Any = None if self.evaluator is None else self.evaluator.state
        if state is None or state.key_metric_name is None or state.best_metric_epoch < 0:
            return None  # nothing was validated yet
        return {"epoch": state.best_metric_epoch, state.key_metric_name: state.best_metric}


def named_hash(item: dict[str, Any]) -> dict[str, Any]:
    """File name, domain and SHA-256 of a dataset item; a labelling server sends no digest."""
    digest = item.get("sha256") or sha256(item["image"])
    return {"image": case_name(item["image"]), "domain": item.get("domain"), "sha256": digest}
