"""What a finished arm left behind, read and checked: a table with a row per test case, its losses and its history."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_json
from med3d_ext.tools.experiments.engine import RUN, Arm, identity

METRIC = "val_"  # how the columns of cases.csv begin that are metrics


@dataclass(frozen=True)
class ArmResult:
    """The figures of one finished arm.

    Args:
        facts: what distinguishes it: ``seed``, and ``value``, or ``start``, ``share`` and ``fold``.
        folder: the arm's folder.
        record: its ``run.json``.
        losses: the loss of every iteration.
        history: the rows of ``history.csv``, each with the ``iteration`` that its epoch ended with.
        cases: a row per test case: ``domain``, ``case``, ``sha256`` of its image, and its numbers.
        training: its training cases, as its card lists them.
    """

    facts: Mapping[str, Any]
    folder: Path
    record: Mapping[str, Any]
    losses: np.ndarray
    history: pd.DataFrame
    cases: pd.DataFrame
    training: Sequence[Mapping[str, Any]]

    @property
    def effort(self) -> dict[str, Any]:
        """Epochs; seconds of the training since its last start; how often it was started; the device."""
        run = self.record
        facts = {"epochs": run["epochs"], "seconds": run["duration_seconds"]}
        return {**facts, "starts": 1 + len(run["earlier"]), "device": run["device"]}


def read_result(arm: Arm) -> ArmResult:
    """Read a finished arm.

    Raises:
        InputError: a file is missing or damaged, or the arm was not evaluated on exactly its data's test cases.
    """
    record, card = read_json(arm.folder / RUN), read_json(arm.folder / "models" / "card.json")
    test = [item for item in arm.data.test if item["domain"] in record["data"]]  # a study's arm may lack domains
    chosen = {case["sha256"] for split in ("training", "validation") for case in card["cases"].get(split, [])}
    for item in test:
        if item["sha256"] in chosen or item["sha256"] not in record["data"][item["domain"]].values():
            raise InputError(
                f"'{arm.folder}' has other test cases of {item['domain']} than the experiment's data; remove it."
            )
    losses, history = _read_table(arm.folder / "loss.csv"), _read_table(arm.folder / "history.csv")
    history["iteration"] = history["epoch"].map(losses.groupby("epoch")["iteration"].last())
    return ArmResult(
        facts=arm.facts,
        folder=arm.folder,
        record=record,
        losses=losses["loss"].to_numpy(),
        history=history,
        cases=_read_cases(arm.folder / "test" / "cases.csv", test),
        training=card["cases"]["training"],
    )


def _read_cases(path: Path, test: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of an evaluation with the SHA-256 of their images: every test case once."""
    cases = _read_table(path)
    left, hashes = list(test), []
    for domain, name in zip(cases.get("domain", []), cases.get("case", [])):
        # the arms of an experiment evaluate in one order, so files of one name in several folders come in it too
        called = [item for item in left if name in (case_name(item["image"]), os.path.basename(item["image"]))]
        called = [item for item in called if item["domain"] == domain] or called
        if called:
            left.remove(called[0])
            hashes.append(called[0]["sha256"])
    if left or len(hashes) < len(cases):
        raise InputError(f"'{path}' does not contain each of the {len(test)} test cases once; remove it and repeat.")
    numbers = cases.drop(columns=["domain", "case"]).apply(pd.to_numeric, errors="coerce")
    return pd.concat([cases[["domain", "case"]].assign(sha256=hashes), numbers], axis=1)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, converters={"case": str, "domain": str}, float_precision="round_trip")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"'{path}' cannot be read ({reason}); remove the arm's folder and repeat.") from error


def check_budgets(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """All arms of one share and fold made the same iterations, and those of one seed on the same training cases.

    Returns:
        per share and fold its iterations, epochs and training cases.

    Raises:
        InputError: two arms differ; the message names them.
    """

    budgets: dict[tuple, ArmResult] = {}
    twins: dict[tuple, ArmResult] = {}
    for result in results:
        place = (result.facts["share"], result.facts["fold"])
        pair = (budgets.setdefault(place, result), result)
        made = [(one.record["iterations"], one.record["epochs"], len(one.losses)) for one in pair]
        if made[0] != made[1]:
            words = (
                f"'{one.folder.name}' made {iterations} iterations in {epochs} epochs ({losses} in its loss.csv)"
                for one, (iterations, epochs, losses) in zip(pair, made)
            )
            raise InputError(
                f"budgets must be equal, and {', '.join(words)}; remove the folder of the one that is wrong and type "
                "the same command again."
            )
        twin = twins.setdefault((*place, result.facts["seed"]), result)
        if identity(twin.training) != identity(result.training):
            raise InputError(
                f"training cases must be equal, and '{twin.folder.name}' and '{result.folder.name}' had different "
                "ones; remove both folders and type the same command again."
            )
    keys = ("iterations", "epochs")
    return [
        {"share": share, "fold": fold, **{key: one.record[key] for key in keys}, "training_cases": len(one.training)}
        for (share, fold), one in budgets.items()
    ]
