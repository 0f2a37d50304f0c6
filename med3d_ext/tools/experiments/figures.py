"""What the arms reach on the test cases: n, mean and interval, and a paired test against training from scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.tools.evaluate.paired import paired_test
from med3d_ext.tools.experiments.arm_results import ArmResult, Case
from med3d_ext.tools.experiments.paired_auc import describe_auc, pair_scores, paired_auc_test

AUC = "auc"  # of all test cases together, where an evaluation leaves labels and probabilities
ALL = "all"
PREFIX = "val_"  # of the columns of cases.csv that are metrics
SMALL_IS_GOOD = ("loss", "brier", "error", "distance", "hd95", "assd")


def is_small_good(metric: str) -> bool:
    """Whether a metric's lower values are the better ones, by its name."""
    return any(word in metric.lower() for word in SMALL_IS_GOOD)


def test_figures(
    results: Sequence[ArmResult], metric: str, excluded: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """One entry per share, domain and metric: every arm's figures over the test cases of all folds.

    A case's value is its mean over the seeds, so n is the number of cases. The AUC is the mean of the seeds' AUCs.

    Args:
        results: all arms of some seeds.
        metric: what picks the reference, the better arm from scratch: by its mean over all test cases of the share.
            One that the test cases do not have: the AUC where there is one, else the first of their metrics.
        excluded: SHA-256 of the images of cases that count in no arm.
    """
    entries = []
    for share in dict.fromkeys(result.facts["share"] for result in results):
        members = [result for result in results if result.facts["share"] == share]
        tables = _tables(members, excluded)
        reference = _reference(tables, metric)
        domains = list(dict.fromkeys(domain for result in members for domain, _ in result.cases))
        for domain in [*domains, *([ALL] if len(domains) > 1 else [])]:
            for name, table in tables.items():
                arms = table.describe(domain, reference)
                if any(arm["n"] for arm in arms.values()):
                    entries.append(
                        {"share": share, "domain": domain, "metric": name, "reference": reference, "arms": arms}
                    )
    return entries


test_figures.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take it for one


class CaseMetric:
    """The values of one metric, by arm, case and seed."""

    def __init__(self, name: str, results: Sequence[ArmResult], excluded: frozenset[str]) -> None:
        self.name = name
        self.values: dict[str, dict[Case, dict[int, float]]] = {}
        for result in results:
            arm = self.values.setdefault(result.start, {})
            for case, numbers in result.cases.items():
                if result.hashes[case] not in excluded:
                    arm.setdefault(case, {})[result.facts["seed"]] = numbers.get(name, math.nan)

    def mean(self, arm: str, domain: str = ALL) -> float:
        """The arm's mean over cases, NaN where it has none."""
        return _mean(self.of_cases(arm, domain))

    def describe(self, domain: str, reference: str) -> dict[str, dict[str, Any]]:
        """Figures of every arm, with its difference to the reference."""
        base = self.of_cases(reference, domain)
        figures: dict[str, dict[str, Any]] = {}
        for arm in self.values:
            values = self.of_cases(arm, domain)
            seeds = {str(seed): _mean(self.of_cases(arm, domain, seed)) for seed in self.seeds(arm)}
            cases = {name: value for (_, name), value in zip(self.cases(arm, domain), values)}
            figures[arm] = {**describe_metric(values), "per_seed": _plain(seeds), "cases": _plain(cases)}
            if arm != reference:
                test = {"test": "Wilcoxon signed-rank", **paired_test(values, base)}
                figures[arm]["against_reference"] = test
        return figures

    def cases(self, arm: str, domain: str) -> list[Case]:
        """The cases of a domain, in an order that is the same for all arms."""
        return [case for case in sorted(self.values[arm]) if domain in (ALL, case[0])]

    def of_cases(self, arm: str, domain: str, seed: int | None = None) -> list[float]:
        """A value per case of :meth:`cases`: of one seed, or the mean over all."""
        chosen = [self.values[arm][case] for case in self.cases(arm, domain)]
        return [_mean(list(seeds.values())) if seed is None else seeds.get(seed, math.nan) for seeds in chosen]

    def seeds(self, arm: str) -> list[int]:
        """The arm's seeds."""
        return list(dict.fromkeys(seed for seeds in self.values[arm].values() for seed in seeds))


class PooledAUC:
    """The area under the ROC curve of all test cases together, by arm and seed."""

    def __init__(self, results: Sequence[ArmResult], excluded: frozenset[str]) -> None:
        self.labels = CaseMetric("label", results, excluded)
        self.probabilities = CaseMetric("probability", results, excluded)

    def mean(self, arm: str, domain: str = ALL) -> float:
        """The arm's mean AUC, NaN where a class is missing."""
        pairs = self._pairs(arm, domain)
        return float(pairs.mean()) if pairs.size else math.nan

    def describe(self, domain: str, reference: str) -> dict[str, dict[str, Any]]:
        """Figures of every arm, with its difference to the reference."""
        base = self._pairs(reference, domain)
        figures = {}
        for arm in self.labels.values:
            pairs = self._pairs(arm, domain)
            seeds = {str(seed): _mean(self._pairs(arm, domain, seed)) for seed in self.labels.seeds(arm)}
            figures[arm] = {**describe_auc(pairs), "per_seed": _plain(seeds)}
            if arm != reference:
                figures[arm]["against_reference"] = {"test": "DeLong", **paired_auc_test(pairs, base)}
        return figures

    def _pairs(self, arm: str, domain: str, seed: int | None = None) -> np.ndarray:
        labels = self.labels.of_cases(arm, domain)
        seeds = self.labels.seeds(arm) if seed is None else [seed]
        return pair_scores(labels, [self.probabilities.of_cases(arm, domain, one) for one in seeds])


def _tables(results: Sequence[ArmResult], excluded: frozenset[str]) -> dict[str, CaseMetric | PooledAUC]:
    columns = list(dict.fromkeys(name for result in results for row in result.cases.values() for name in row))
    tables: dict[str, CaseMetric | PooledAUC] = {
        name: CaseMetric(name, results, excluded) for name in columns if name.startswith(PREFIX)
    }
    if {"label", "probability"} <= set(columns):
        tables[AUC] = PooledAUC(results, excluded)
    if not tables:
        raise InputError(f"'{results[0].folder}/test/cases.csv' has no column that begins with {PREFIX}: no metric.")
    return tables


def _reference(tables: Mapping[str, CaseMetric | PooledAUC], metric: str) -> str:
    """The better arm from scratch."""
    name = metric if metric in tables else AUC if AUC in tables else next(iter(tables))
    table = tables[name]
    arms = table.labels.values if isinstance(table, PooledAUC) else table.values
    sign = -1 if is_small_good(name) else 1
    means = {arm: table.mean(arm) for arm in arms if arm.startswith("scratch")}
    return max(means, key=lambda arm: -math.inf if math.isnan(means[arm]) else sign * means[arm])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else math.nan


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Rounded, None for NaN: JSON knows none."""
    return {key: round(value, 4) if math.isfinite(value) else None for key, value in figures.items()}
