"""The files of a comparison: JSON with everything, curves, overlays and a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import write_atomically, write_json
from med3d_ext.run.provenance import command_line, git_state, portable, versions
from med3d_ext.tools.experiments.arm_results import ArmResult, check_budgets
from med3d_ext.tools.experiments.curves import LOSS, iterations_to_reach, loss_curves, metric_curves
from med3d_ext.tools.experiments.figures import test_figures
from med3d_ext.tools.experiments.pictures import Panel, draw_curves, draw_overlays
from med3d_ext.tools.experiments.study_results import identity
from med3d_ext.tools.experiments.table import comparison_table

if TYPE_CHECKING:
    from med3d_ext.tools.experiments.experiment import Comparison

logger = logging.getLogger("med3d_ext.compare")


def write_report(comparison: Comparison, results: Sequence[ArmResult], complete: bool) -> dict[str, Any]:
    """Write ``comparison.json``, ``table.md``, ``curves.png`` and, where there are snapshots, ``overlays.png``.

    Args:
        comparison: the comparison.
        results: every arm of the seeds that are complete.
        complete: whether these are all seeds.

    Returns:
        the content of ``comparison.json``.

    Raises:
        InputError: budgets differ, or no arm knows the metric.
    """
    budgets = check_budgets(results)
    metric = _metric(comparison.metric, results)
    reaches, panels, window = [], [], {}
    for share in comparison.shares:
        members = [result for result in results if result.facts["share"] == share]
        losses, window[_words(share)] = loss_curves(members)
        scores = metric_curves(members, metric)
        row: list[Panel] = []
        smooth = f"{LOSS}, mean of {window[_words(share)]} iterations"
        for curves, quantity, label in ((losses, LOSS, smooth), (scores, metric, f"{metric} (validation)")):
            reach = iterations_to_reach(curves, quantity)
            reaches.append({"share": share, **reach})
            row.append((_words(share), label, curves, reach))
        panels.append(row)
    record = {
        **_origin(comparison),
        "complete": complete,
        "seeds": list(dict.fromkeys(result.facts["seed"] for result in results)),
        "budgets": budgets,
        "excluded_test_cases": sorted(comparison.excluded.values()),
        "metric": metric,
        "results": test_figures(results, metric, frozenset(comparison.excluded)),
        "smoothing_iterations": window,
        "iterations_to_reach": reaches,
        "runs": [_run(result) for result in results],
    }
    output = comparison.output
    write_json(output / "comparison.json", record)
    with write_atomically(output / "table.md", "w") as file:
        file.write(comparison_table(record))
    draw_curves(output / "curves.png", panels)
    if not draw_overlays(output / "overlays.png", _one_of_each(results, comparison.shares)):
        (output / "overlays.png").unlink(missing_ok=True)
    return record


def _metric(asked: str | None, results: Sequence[ArmResult]) -> str:
    """The metric of the validation that arms are compared by."""
    metric = asked or results[0].key_metric
    if metric is None:
        raise InputError(f"'{results[0].folder / 'run.json'}' names no best metric; choose one with --metric.")
    lacking = next((result for result in results if not result.curve(metric)), None)
    if lacking is not None:
        names = sorted({name for row in lacking.epochs for name in row if name.startswith("val_")})
        raise InputError(
            f"metric must be a column of '{lacking.folder / 'history.csv'}', one of {', '.join(names)}, got {metric}."
        )
    return metric


def _origin(comparison: Comparison) -> dict[str, Any]:
    """Where the figures come from."""
    test = {
        _words_of_fold(fold): {"n": len(data.test), "identity": identity([item["sha256"] for item in data.test])}
        for fold, data in comparison.data.items()
    }
    first = next(iter(comparison.data.values()))
    return {
        "bundle": comparison.config.bundle.resolve().name,
        **command_line(),
        "options": portable(comparison.config.options),
        "shares": comparison.shares,
        "folds": None if comparison.folds == [None] else len(comparison.folds),
        "versions": versions(),
        "git": git_state(),
        "data": {"name": first.folder.resolve().name, "identity": first.identity, "test": test},
        "starts": comparison.facts,
    }


def _run(result: ArmResult) -> dict[str, Any]:
    """Facts of one arm; ``seconds`` is the time of its training since its last start."""
    record = result.record
    facts = {key: value for key, value in result.facts.items() if key != "weights"}
    best = {key: record[key] for key in ("best",) if key in record}
    return {
        **facts,
        "iterations": record["iterations"],
        "epochs": record["epochs"],
        "training_cases": result.training[0],
        "seconds": record["duration_seconds"],
        "starts": 1 + len(record["earlier"]),
        "device": record["device"],
        **best,
    }


def _one_of_each(results: Sequence[ArmResult], shares: Sequence[float | None]) -> list[ArmResult]:
    """The arms of the overlays: the largest share, the first fold, the first seed."""
    share = max(shares, key=lambda one: one or 0)
    first = next(result for result in results if result.facts["share"] == share)
    place = {key: first.facts[key] for key in ("share", "fold", "seed")}
    return [result for result in results if all(result.facts[key] == value for key, value in place.items())]


def _words(share: float | None) -> str:
    return "all training cases" if share is None else f"{share:.0%} of the training cases"


def _words_of_fold(fold: int | None) -> str:
    return "test" if fold is None else f"fold {fold}"
