"""What an evaluation leaves behind: one row per case, and one JSON with n and intervals."""

from __future__ import annotations

import csv
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import string_list_all_gather

from med3d_ext.data.leakage import Evaluated
from med3d_ext.handlers.base import Handler
from med3d_ext.io.files import case_name, told_apart, write_atomically, write_json
from med3d_ext.metrics.intervals import describe_metric

logger = logging.getLogger("med3d_ext.evaluate")
Row = dict[str, Any]


@dataclass(eq=False)
class CaseTable(Handler):
    """A row for every case of an engine, of all its processes; subclasses say what is in a row and what is written.

    If there is ``evaluated``, it says before anything is computed what makes the figures doubtful.
    """

    every_rank = True

    output_dir: str

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir)
        self.doubts: dict[str, Any] = {}
        self.rows: list[Row] = []

    def attach(self, engine: Any) -> None:
        evaluated: Evaluated | None = getattr(self, "evaluated", None)
        if evaluated is not None and engine.state.rank == 0:
            self.doubts = evaluated.doubts(engine.data_loader.dataset.data)
        super().attach(engine)

    def started(self, engine: Any) -> None:
        self.rows.clear()

    def iteration_completed(self, engine: Any) -> None:
        self.rows += [self.row(item, output) for item, output in zip(engine.state.batch, engine.state.output)]

    def completed(self, engine: Any) -> None:
        rows: list[Row] = [json.loads(text) for text in string_list_all_gather([json.dumps(row) for row in self.rows])]
        details = {name: per_case(value) for name, value in getattr(engine.state, "metric_details", {}).items()}
        if engine.state.rank == 0:
            names = told_apart({row["case"]: self.called(row["case"]) for row in rows if row["case"]})
            self.write([{**row, "case": names.get(row["case"], "")} for row in rows], details)

    def called(self, path: str) -> str:
        """What a case is called by the path of its image."""
        return os.path.basename(path)

    def row(self, item: Any, output: Any) -> Row:
        """The row of a case: ``case``, the path of its image, and what can be written as JSON."""
        raise NotImplementedError

    def write(self, rows: list[Row], details: dict[str, np.ndarray]) -> None:
        """Write the table; ``details`` holds the values of the engine's metrics, one for each row."""
        raise NotImplementedError


@dataclass(eq=False)
class EvaluationSummary(CaseTable):
    """Write ``cases.csv`` and ``summary.json`` when an evaluation ends, and log one line per metric and domain.

    Reads the per-case values that MONAI's metric handlers keep with ``save_details`` (their default). Items with a
    ``domain`` are also summarized per domain.

    Args:
        output_dir: folder of the two files.
        split: name of the evaluated split, written into the summary.
        group_by: a further key of the items, such as `modality`, that the cases are summarized by. Defaults to None.
        evaluated: says what must be known before the figures. Defaults to None, which says nothing.
    """

    split: str = "test"
    group_by: str | None = None
    evaluated: Evaluated | None = None

    def called(self, path: str) -> str:
        return case_name(path)

    def row(self, item: Any, output: Any) -> Row:
        image = item["image"]
        name = str(image.meta.get("filename_or_obj", "")) if isinstance(image, MetaTensor) else ""
        group = {self.group_by: str(item.get(self.group_by, "not stated"))} if self.group_by else {}
        return {"case": name, "domain": str(item.get("domain", "all")), **group}

    def write(self, rows: list[Row], details: dict[str, np.ndarray]) -> None:
        rows = [{**row, **{name: float(v[number]) for name, v in details.items()}} for number, row in enumerate(rows)]
        groups = {self.group_by: summarize_rows(rows, list(details), self.group_by)} if self.group_by else {}
        write_evaluation(self.folder, self.split, rows, summarize_rows(rows, list(details)), groups, self.doubts)
        for figures in groups.values():
            log_figures(figures)


def write_evaluation(
    folder: Path,
    split: str,
    rows: list[Row],
    domains: dict[str, dict[str, Any]],
    facts: dict[str, Any],
    first: dict[str, Any],
) -> None:
    """Write ``cases.csv`` and ``summary.json``, and log a line per domain and metric.

    ``domains`` has at least ``n``, ``mean`` and ``interval_95`` of each metric; the summary states ``first`` before,
    and ``facts`` after all else.
    """
    write_rows(folder / "cases.csv", rows, ["case", "domain"])
    write_json(folder / "summary.json", {**first, "split": split, "n": len(rows), "domains": domains, **facts})
    log_figures(domains)


def write_rows(path: Path, rows: list[Row], columns: list[str]) -> None:
    """Write rows as CSV, empty cells for what a row lacks; ``columns`` come first."""
    with write_atomically(path, "w") as file:
        names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
        writer = csv.DictWriter(file, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def log_figures(groups: dict[str, dict[str, Any]]) -> None:
    """A line per metric of each domain or other group of cases."""
    for group, metrics in groups.items():
        for name, figure in metrics.items():
            interval = f", 95 % interval {figure['interval_95']}" if figure["interval_95"] is not None else ""
            logger.info(f"{group}: {name} {figure['mean']} (n={figure['n']}{interval})")


def per_case(details: Any) -> np.ndarray:
    """Mean over the classes of a metric's details (cases, classes), NaN if a case has no value."""
    values = torch.as_tensor(details).detach().cpu().double()
    values = values.reshape(values.shape[0], -1) if values.ndim else values.reshape(1, 1)
    return torch.nanmean(values, dim=1).numpy()


def summarize_rows(rows: list[Row], metrics: list[str], key: str = "domain") -> dict[str, dict[str, Any]]:
    """Domain, or value of another column, to metric to n, mean and interval."""
    return {
        group: {name: describe_metric([row[name] for row in rows if row[key] == group]) for name in metrics}
        for group in dict.fromkeys(row[key] for row in rows)
    }
