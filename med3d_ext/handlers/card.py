"""What is next to the weights: the fingerprint that inference reads, and the card that says what the weights saw."""

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
from med3d_ext.data.prepared_files import change_paths
from med3d_ext.io.files import case_name, sha256, write_json
from med3d_ext.transforms.sampling import size_of
from med3d_ext.weights.initial import InitialWeights


class WeightsCard:
    """Write ``fingerprint.json`` when training starts and ``card.json`` after every epoch.

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
        facts: what else inference must know, written into every domain of the fingerprint. Defaults to nothing.
        seen: further cases that the weights have seen, a list for each name. Defaults to none.
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
        self.facts = {"network": network_name, "init": os.path.basename(init), "seed": seed}
        self.spatial_size = spatial_size
        self.evaluator = evaluator
        self.initial = initial
        self.domain_facts, self.seen = dict(facts or {}), dict(seen or {})

    def attach(self, engine: Any) -> None:
        """Register with the trainer, after the handlers that validate and save."""
        if engine.state.rank == 0:
            engine.add_event_handler(Events.STARTED, self.write_fingerprint)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write_card)

    def write_fingerprint(self, engine: Any) -> None:
        """Spacing, classes, intensity and cases of every domain, with file names instead of paths."""
        domains = {}
        for name, domain in self.data.fingerprint["domains"].items():
            cases = [public_case(case) for case in domain["cases"]]
            size = size_of(self.spatial_size, {"domain": name})
            domains[name] = {**domain, **self.domain_facts, "spatial_size": size, "cases": cases}
        write_json(self.ckpt_dir / "fingerprint.json", {"domains": domains})
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
                "domains": sorted(self.data.fingerprint["domains"]),
                "best": self._best(),
                "cases": {
                    "training": self._trained_on,
                    "validation": self._chosen_by,
                    **self.seen,
                },
            },
        )

    @cached_property
    def _trained_on(self) -> list[dict[str, Any]]:
        return self._with_earlier("training", self.dataset.data)

    @cached_property
    def _chosen_by(self) -> list[dict[str, Any]]:
        items = self.data.items("validation")
        if self.data.served is not None and self.evaluator is not None:
            items = self.evaluator.data_loader.dataset.data  # the server's
        return self._with_earlier("validation", items)

    def _with_earlier(self, split: str, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items after the cases that the weights have seen before, in a labelling server."""
        cases = [named_hash(item) for item in items]
        hashes = {case["sha256"] for case in cases}
        return [*(case for case in self.data.seen.get(split, []) if case["sha256"] not in hashes), *cases]

    def _best(self) -> dict[str, Any] | None:
        state: Any = None if self.evaluator is None else self.evaluator.state
        if state is None or state.key_metric_name is None or state.best_metric_epoch < 0:
            return None  # nothing was validated yet
        return {"epoch": state.best_metric_epoch, state.key_metric_name: state.best_metric}


def public_case(case: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint's case without what belongs to one machine."""
    kept = {key: value for key, value in case.items() if key != "stamp"}
    return {**kept, **change_paths(case, os.path.basename), "image": case_name(case["image"])}


def named_hash(item: dict[str, Any]) -> dict[str, Any]:
    """File name, domain and SHA-256 of a dataset item; a labelling server sends no digest."""
    digest = item.get("sha256") or sha256(item["image"])
    return {"image": case_name(item["image"]), "domain": item.get("domain"), "sha256": digest}
