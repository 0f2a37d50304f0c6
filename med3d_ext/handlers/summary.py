"""What an evaluation leaves behind: one row per case, and one JSON with n and intervals."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.utils import string_list_all_gather

from med3d_ext.data.leakage import Evaluated
from med3d_ext.io.files import case_names, write_json
from med3d_ext.metrics.intervals import describe_metric

logger = logging.getLogger("med3d_ext.evaluate")


class EvaluationSummary:
    """Write ``cases.csv`` and ``summary.json`` when an evaluation ends, and log one line per metric and domain.

    Reads the per-case values that MONAI's metric handlers keep with ``save_details`` (their default). Items with a
    ``domain`` are also summarized per domain.

    Args:
        output_dir: folder of the two files.
        split: name of the evaluated split, written into the summary.
        group_by: a further key of the items, such as `modality`, that the cases are summarized by. Defaults to None.
        evaluated: says what must be known before the figures. Defaults to None, which says nothing.
    """

    def __init__(
        self,
        output_dir: str,
        split: str = "test",
        group_by: str | None = None,
        evaluated: Evaluated | None = None,
    ) -> None:
        self.output_dir = output_dir
        self.split = split
        self.group_by = group_by
        self.evaluated = evaluated
        self.doubts: dict[str, Any] = {}
        self.cases: list[str] = []
        self.domains: list[str] = []
        self.groups: list[str] = []

    def attach(self, engine: Any) -> None:
        """Register with a MONAI evaluator, and say before anything is computed what makes its figures doubtful."""
        self.doubts = doubts(self.evaluated, engine)
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_cases)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def started(self, engine: Any) -> None:
        """Forget the cases of an earlier run."""
        self.cases, self.domains, self.groups = [], [], []

    def note_cases(self, engine: Any) -> None:
        """Remember which file each per-case value belongs to."""
        for item in engine.state.batch:
            image = item["image"]
            name = str(image.meta.get("filename_or_obj", "")) if isinstance(image, MetaTensor) else ""
            self.cases.append(name)
            self.domains.append(str(item.get("domain", "all")))
            self.groups.append(str(item.get(self.group_by, "not stated")))

    def write(self, engine: Any) -> None:
        """Write both files."""
        paths, domains, groups = map(string_list_all_gather, (self.cases, self.domains, self.groups))
        names = case_names(paths)
        cases = [names[path] for path in paths]
        details = {name: per_case(value) for name, value in engine.state.metric_details.items()}
        if engine.state.rank != 0:
            return
        columns = {"case": cases, "domain": domains} | ({self.group_by: groups} if self.group_by else {})
        rows: list[dict[str, Any]] = [dict(zip(columns, facts)) for facts in zip(*columns.values())]
        for number, row in enumerate(rows):
            row.update({name: float(values[number]) for name, values in details.items()})
        grouped = {self.group_by: summarize_rows(rows, list(details), self.group_by)} if self.group_by else {}
        figures = summarize_rows(rows, list(details))
        write_evaluation(Path(self.output_dir), self.split, rows, figures, grouped, self.doubts)
        for group, metrics in grouped.get(self.group_by or "", {}).items():
            log_figures(group, metrics)


def doubts(evaluated: Evaluated | None, engine: Any) -> dict[str, Any]:
    """:meth:`Evaluated.doubts` of the data that an evaluator is going to see, once for all processes."""
    if evaluated is None or engine.state.rank != 0:
        return {}
    return evaluated.doubts(engine.data_loader.dataset.data)


def write_evaluation(
    folder: Path,
    split: str,
    rows: list[dict[str, Any]],
    domains: dict[str, dict[str, Any]],
    facts: dict[str, Any] | None = None,
    first: dict[str, Any] | None = None,
) -> None:
    """Write ``cases.csv`` and ``summary.json``, and log a line per domain and metric.

    Args:
        folder: folder of the two files, made where missing.
        split: name of the evaluated split.
        rows: a row per case, all with the same columns.
        domains: domain to metric to at least ``n``, ``mean`` and ``interval_95``.
        facts: what else the summary states.
        first: what it states before all else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["case", "domain"])
        writer.writeheader()
        writer.writerows(rows)
    write_json(
        folder / "summary.json", {**(first or {}), "split": split, "n": len(rows), "domains": domains, **(facts or {})}
    )
    for domain, metrics in domains.items():
        log_figures(domain, metrics)


def log_figures(group: str, metrics: dict[str, Any]) -> None:
    """A line per metric of a domain or of another group of cases."""
    for name, figure in metrics.items():
        interval = f", 95 % interval {figure['interval_95']}" if figure["interval_95"] is not None else ""
        logger.info(f"{group}: {name} {figure['mean']} (n={figure['n']}{interval})")


def per_case(details: Any) -> np.ndarray:
    """Mean over the classes of a metric's details (cases, classes), NaN where a case has no value."""
    values = torch.as_tensor(details).detach().cpu().double()
    values = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
    return torch.nanmean(values, dim=1).numpy()


def summarize_rows(rows: list[dict[str, Any]], metrics: list[str], key: str = "domain") -> dict[str, dict[str, Any]]:
    """Domain, or value of another column, to metric to n, mean and interval."""
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row[key]].append(row)
    return {
        domain: {name: describe_metric([row[name] for row in members]) for name in metrics}
        for domain, members in grouped.items()
    }
