"""What one arm of a comparison left behind, read and checked."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_ext.data.prepare import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_json
from med3d_ext.tools.experiments.arms import Arm
from med3d_ext.tools.experiments.study_results import check_split, identity

Case = tuple[str, str]
"""Domain and file name of a test case."""
Epoch = Mapping[str, float]


@dataclass(frozen=True)
class ArmResult:
    """The figures of one finished arm.

    Args:
        facts: ``start``, ``share``, ``fold`` and ``seed``.
        folder: where the arm lies.
        record: its ``run.json``.
        losses: the loss of every iteration.
        epochs: the rows of ``history.csv``, each with the ``iteration`` that its epoch ended with.
        cases: the numbers of every test case, by name.
        hashes: the SHA-256 of its image.
        training: number of its training cases and a digest of them.
    """

    facts: Mapping[str, Any]
    folder: Path
    record: Mapping[str, Any]
    losses: Sequence[float]
    epochs: Sequence[Epoch]
    cases: Mapping[Case, Mapping[str, float]]
    hashes: Mapping[Case, str]
    training: tuple[int, str]

    @property
    def start(self) -> str:
        """Name of what it started from."""
        return str(self.facts["start"])

    @property
    def key_metric(self) -> str | None:
        """The metric that picked its best epoch."""
        return next((name for name in self.record.get("best", {}) if name != "epoch"), None)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(iteration, value) of a column of the history, where it has one."""
        return [(row["iteration"], row[name]) for row in self.epochs if math.isfinite(row.get(name, math.nan))]


def read_result(arm: Arm, data: PreparedData) -> ArmResult:
    """Read a finished arm.

    Args:
        arm: the arm.
        data: its data, whose test cases must be the arm's.

    Raises:
        InputError: a file is missing or damaged, or the arm was not evaluated on exactly the data's test cases.
    """
    check_split(arm, data)
    iterations = _read_rows(arm.folder / "loss.csv")
    ends = {int(row["epoch"]): row["iteration"] for row in iterations}
    epochs = [
        {**row, "iteration": ends.get(int(row["epoch"]), math.nan)} for row in _read_rows(arm.folder / "history.csv")
    ]
    cases, hashes = _read_cases(arm.folder / "test" / "cases.csv", data)
    training = read_json(arm.folder / "models" / "card.json")["cases"]["training"]
    return ArmResult(
        facts=arm.facts,
        folder=arm.folder,
        record=read_json(arm.run),
        losses=[row["loss"] for row in iterations],
        epochs=epochs,
        cases=cases,
        hashes=hashes,
        training=(len(training), identity([case["sha256"] for case in training])),
    )


def _read_cases(path: Path, data: PreparedData) -> tuple[dict[Case, dict[str, float]], dict[Case, str]]:
    """Domain and case to its numbers, and to its image's SHA-256: every test case once."""
    rows = _read_texts(path)
    found = [(row.get("domain", ""), row.get("case", "")) for row in rows]
    hashes = {case: _sha256(case, data) for case in found}
    wanted = sorted(item["sha256"] for item in data.test)
    if sorted(filter(None, hashes.values())) != wanted or len(hashes) < len(found):
        raise InputError(f"'{path}' does not hold each of the {len(wanted)} test cases once; remove it and repeat.")
    cases = {
        case: {name: _number(text) for name, text in row.items() if name not in ("case", "domain")}
        for case, row in zip(found, rows)
    }
    return cases, hashes


def _sha256(case: Case, data: PreparedData) -> str:
    """Of the test case that an evaluation calls so; empty where there is none, or more than one."""
    domain, name = case
    called = [item for item in data.test if name in (case_name(item["image"]), os.path.basename(item["image"]))]
    called = [item for item in called if item["domain"] == domain] or called
    return called[0]["sha256"] if len(called) == 1 else ""


def _read_rows(path: Path) -> list[dict[str, float]]:
    return [{name: _number(text) for name, text in row.items()} for row in _read_texts(path)]


def _read_texts(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); remove the arm's folder and repeat.") from error


def _number(text: str | None) -> float:
    """NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def check_budgets(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """All arms of one share and fold made the same iterations, and those of one seed on the same training cases.

    Returns:
        per share and fold its iterations, epochs and training cases.

    Raises:
        InputError: two arms differ; the message names them.
    """
    budgets: dict[tuple, ArmResult] = {}
    data: dict[tuple, ArmResult] = {}
    for result in results:
        place = (result.facts["share"], result.facts["fold"])
        first = budgets.setdefault(place, result)
        if _budget(first) != _budget(result):
            raise InputError(
                f"budgets must be equal, and {_words(first)}, {_words(result)}; remove the folder of the one that is "
                "wrong and type the same command again."
            )
        twin = data.setdefault((*place, result.facts["seed"]), result)
        if twin.training != result.training:
            raise InputError(
                f"training cases must be equal, and '{twin.folder.name}' and '{result.folder.name}' had different "
                "ones; remove both folders and type the same command again."
            )
    return [
        {
            "share": share,
            "fold": fold,
            "iterations": result.record["iterations"],
            "epochs": result.record["epochs"],
            "training_cases": result.training[0],
        }
        for (share, fold), result in budgets.items()
    ]


def _budget(result: ArmResult) -> tuple:
    return result.record["iterations"], result.record["epochs"], len(result.losses)


def _words(result: ArmResult) -> str:
    iterations, epochs, losses = _budget(result)
    return f"'{result.folder.name}' made {iterations} iterations in {epochs} epochs ({losses} in its loss.csv)"
