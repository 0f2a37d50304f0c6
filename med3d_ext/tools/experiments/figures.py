"""What arms reach: figures on the test cases with a paired test, training curves, iterations to reach a level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from med3d_ext.errors import InputError
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.tools.evaluate import paired_test
from med3d_ext.tools.experiments.engine import METRIC, ArmResult

AUC = "auc"  # of all test cases together, if an evaluation leaves labels and probabilities
ALL = "all"
LOSS = "training loss"
SMALL_IS_GOOD = ("loss", "brier", "error", "distance", "hd95", "assd")
RESAMPLES = 2000
_LEAST_WINDOW = 0.05  # of all iterations


def is_small_good(metric: str) -> bool:
    """Whether a metric's lower values are the better ones, by its name."""
    return any(word in metric.lower() for word in SMALL_IS_GOOD)


def arm_figures(results: Sequence[ArmResult], metric: str, excluded: frozenset[str] = frozenset()) -> list[dict]:
    """One entry per share, domain and metric: every arm's figures over the test cases of all folds.

    A case's value is its mean over the seeds, so n is the number of cases. The AUC is the mean of the seeds' AUCs.

    Args:
        results: all arms of some seeds.
        metric: what picks the reference, the better arm from scratch: by its mean over all test cases of the share.
            If the test cases do not have it: the AUC if there is one, else the first of their metrics.
        excluded: SHA-256 of the images of cases that count in no arm.
    """
    entries = []
    for share in dict.fromkeys(result.facts["share"] for result in results):
        members = [result for result in results if result.facts["share"] == share]
        cases = pd.concat([one.cases.assign(start=one.facts["start"], seed=one.facts["seed"]) for one in members])
        names = [name for name in cases if name.startswith(METRIC)]
        names += [AUC] if {"label", "probability"} <= set(cases) else []
        if not names:
            raise InputError(
                f"'{members[0].folder}/test/cases.csv' has no column that begins with {METRIC}: no metric."
            )
        cases = cases[~cases["sha256"].isin(excluded)]
        chosen = metric if metric in names else AUC if AUC in names else names[0]
        sign = -1 if is_small_good(chosen) else 1
        arms = cases.groupby("start", sort=False)
        means = {name: sign * _mean(_scores(arm, chosen)) for name, arm in arms if _is_scratch(name)}
        domains = list(cases["domain"].unique())
        for domain in [*domains, *([ALL] if len(domains) > 1 else [])]:
            reference = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
            counted = cases if domain == ALL else cases[cases["domain"] == domain]
            for name in names:
                figures = _describe(counted, name, reference)
                if any(arm["n"] for arm in figures.values()):
                    place = {"share": share, "domain": domain, "metric": name, "reference": reference}
                    entries.append({**place, "arms": figures})
    return entries


def _is_scratch(start: str) -> bool:
    return start.startswith("scratch")


def _by_seed(arm: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of an arm's cases: (cases, seeds), in an order of the cases that is the same for all arms."""
    return arm.set_index(["domain", "case", "sha256", "seed"])[name].unstack("seed")[arm["seed"].unique()].sort_index()


def _scores(arm: pd.DataFrame, name: str, seeds: Sequence[int] | None = None) -> Any:
    """Each case's mean over all or some seeds; of the AUC :func:`pair_scores`. Their mean is the metric's."""
    values = _by_seed(arm, "probability" if name == AUC else name)
    values = values if seeds is None else values[seeds]
    return pair_scores(_by_seed(arm, "label").max(axis=1), values.T) if name == AUC else values.mean(axis=1)


def _mean(scores: Any) -> float:
    return float(pd.Series(np.ravel(scores), dtype=float).mean())  # NaN if there are none


def _describe(cases: pd.DataFrame, name: str, reference: str) -> dict[str, dict[str, Any]]:
    """Every arm's figures of one metric, with its difference to the reference."""
    arms = dict(list(cases.groupby("start", sort=False)))
    base = _scores(arms[reference], name)
    figures: dict[str, dict[str, Any]] = {}
    for start, arm in arms.items():
        values = _scores(arm, name)
        per_seed = _plain({str(seed): _mean(_scores(arm, name, [seed])) for seed in arm["seed"].unique()})
        if name == AUC:
            figures[start] = {**describe_auc(values), "per_seed": per_seed}
            test = {"test": "DeLong", **paired_auc_test(values, base)}
        else:
            twice = values.index.get_level_values("case").duplicated(keep=False)  # images of one name in two folders
            labels = [f"{case} ({sha[:8]})" if two else case for (_, case, sha), two in zip(values.index, twice)]
            by_case = _plain(dict(zip(labels, values)))
            figures[start] = {**describe_metric(values), "per_seed": per_seed, "cases": by_case}
            test = {"test": "Wilcoxon signed-rank", **paired_test(values, base)}
        if start != reference:
            figures[start]["against_reference"] = test
    return figures


def pair_scores(labels: Sequence[float], probabilities: Sequence[Sequence[float]]) -> np.ndarray:
    """How often a positive case comes before a negative one, (positives, negatives): 1, 0, or a half for equal ones.

    The mean of all entries is the AUC. ``labels`` are 0 or 1 per case, ``probabilities`` (trainings, cases); the result
    is the mean over the trainings.
    """
    truth, scores = np.asarray(labels) > 0, np.atleast_2d(np.asarray(probabilities, dtype=float))
    gaps = scores[:, truth][:, :, None] - scores[:, ~truth][:, None, :]
    return np.asarray(((np.sign(gaps) + 1) / 2).mean(axis=0))


def describe_auc(pairs: np.ndarray) -> dict[str, Any]:
    """n, mean and 95 % interval over cases of :func:`pair_scores`, as ``describe_metric`` has them."""
    n = sum(pairs.shape)
    if not pairs.size:
        return {"n": n, "mean": None, "interval_95": None, "undefined": n}
    interval = [round(end, 4) for end in _auc_interval(pairs)]
    return {"n": n, "mean": round(float(pairs.mean()), 4), "interval_95": interval, "undefined": 0}


def paired_auc_test(pairs: np.ndarray, others: np.ndarray, resamples: int = RESAMPLES) -> dict[str, Any]:
    """DeLong's test (Biometrics 44, 1988) of two AUCs on the same cases, and the bootstrap interval of the difference.

    Takes :func:`pair_scores` of two runs on the same cases in the same order; returns the keys of
    :func:`~med3d_ext.tools.evaluate.paired_test`, ``p_value`` None if a class has fewer than two cases.
    """
    if pairs.shape != others.shape:
        raise ValueError(f"others must have the shape {pairs.shape}, got {others.shape}.")
    differences = pairs - others
    known, testable = differences.size > 0, min(pairs.shape) > 1
    p_value = None
    if testable:
        variance = sum(differences.mean(axis=1 - axis).var(ddof=1) / pairs.shape[axis] for axis in (0, 1))
        mean = abs(float(differences.mean()))
        p_value = float(2 * norm.sf(mean / math.sqrt(variance))) if variance else float(mean == 0)
    return {
        "n": sum(pairs.shape),
        "excluded": 0,
        "differing": int(sum((differences != 0).any(axis=axis).sum() for axis in (0, 1))),
        "mean_difference": float(differences.mean()) if known else None,
        "interval_95": list(_auc_interval(differences, resamples)) if known else None,
        "p_value": p_value,
        "note": None if testable else "a class has fewer than two cases: no test",
    }


def _auc_interval(pairs: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Positive and negative cases are resampled each among themselves."""
    generator = np.random.default_rng(0)
    rows, columns = (_draws(count, resamples, generator) for count in pairs.shape)
    low, high = np.percentile(np.einsum("rp,pn,rn->r", rows, pairs, columns, optimize=True), [2.5, 97.5])
    return float(low), float(high)


def _draws(count: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Weights (resamples, count) of bootstrap samples: how often each thing was drawn, divided by ``count``."""
    return generator.multinomial(count, np.full(count, 1 / count), resamples) / count


@dataclass(frozen=True)
class Curve:
    """A quantity over the iterations, of every training of an arm."""

    iterations: np.ndarray  # where it was measured (points,)
    seeds: Sequence[int]
    values: np.ndarray  # (seeds, folds, points)

    @property
    def per_seed(self) -> np.ndarray:
        """Mean over the folds (seeds, points)."""
        return self.values.mean(axis=1)

    @property
    def mean(self) -> np.ndarray:
        """Mean over all trainings (points,)."""
        return self.per_seed.mean(axis=0)

    def reaches(self, level: float, small_is_good: bool, values: np.ndarray) -> float | None:
        """The first iteration at which values at the same points are as good as ``level``."""
        good = values <= level if small_is_good else values >= level
        return float(self.iterations[good.argmax()]) if good.any() else None


def loss_curves(results: Sequence[ArmResult]) -> tuple[dict[str, Curve], int]:
    """The smoothed training loss of every arm of one share, and the number of iterations that it is the mean of.

    The window is an epoch or 5 % of the training, whichever is longer, so that a lucky batch reaches nothing.
    """
    total = min(len(result.losses) for result in results)
    epoch = max(math.ceil(len(result.losses) / max(1, result.record["epochs"])) for result in results)
    window = min(total, max(epoch, math.ceil(_LEAST_WINDOW * total)))
    smooth = [np.convolve(result.losses[:total], np.full(window, 1 / window), "valid") for result in results]
    return _by_arm(results, [np.stack([np.arange(len(one)) + window, one], axis=1) for one in smooth]), window


def metric_curves(results: Sequence[ArmResult], metric: str) -> dict[str, Curve]:
    """A metric of the validation, of every arm of one share."""
    known = [result.history.reindex(columns=["iteration", metric]).dropna() for result in results]
    return _by_arm(results, [rows.to_numpy(dtype=float) for rows in known])


def _by_arm(results: Sequence[ArmResult], points: Sequence[np.ndarray]) -> dict[str, Curve]:
    """One curve per arm of points (iteration, value); folds of different length go as far as the shortest."""
    members: dict[str, dict[int, list[np.ndarray]]] = {}
    for result, one in zip(results, points):
        members.setdefault(result.facts["start"], {}).setdefault(result.facts["seed"], []).append(one)
    curves = {}
    for start, seeds in members.items():
        size = min(len(one) for folds in seeds.values() for one in folds)
        grid = np.array([[one[:size] for one in folds] for folds in seeds.values()])
        curves[start] = Curve(grid[..., 0].mean(axis=(0, 1)), list(seeds), grid[..., 1])
    return curves


def iterations_to_reach(curves: Mapping[str, Curve], quantity: str) -> dict[str, Any]:
    """When each arm is first as good as the better arm from scratch is at the end (the paper's 2x and 10x).

    ``times_faster`` is that arm's own first iteration at its final level, divided by the other's. The intervals are
    95 % bootstrap intervals over the trainings: seeds and folds, a block of cases each, are resampled, the same ones
    in all arms, and the level and both iterations are found anew. They are None for a single training, and an end
    is None if the level was never reached.

    Args:
        curves: by name of the arm; those from scratch have names that say so.
        quantity: the metric's name, which says whether small values are the good ones.
    """
    small = quantity == LOSS or is_small_good(quantity)
    finals = {name: float(curve.mean[-1]) if curve.iterations.size else math.nan for name, curve in curves.items()}
    known = {name: final for name, final in finals.items() if _is_scratch(name) and math.isfinite(final)}
    if not known:
        return {"quantity": quantity, "level": None, "reference": None, "arms": {}}
    reference = (min if small else max)(known, key=lambda name: known[name])
    level = known[reference]
    first = {name: curve.reaches(level, small, curve.mean) for name, curve in curves.items()}
    base = first[reference]
    drawn = _drawn_reaches(curves, reference, small)
    arms = {}
    for name, curve in curves.items():
        iteration = first[name]
        arms[name] = {
            "iteration": iteration,
            "iteration_95": _interval(drawn[name]),
            "of": float(curve.iterations[-1]) if curve.iterations.size else None,
            "times_faster": None if iteration is None or base is None else round(base / iteration, 2),
            "times_faster_95": _interval(drawn[reference] / drawn[name]),
            "final": round(finals[name], 4) if math.isfinite(finals[name]) else None,
            "per_seed": {str(seed): curve.reaches(level, small, one) for seed, one in zip(curve.seeds, curve.per_seed)},
        }
    return {"quantity": quantity, "level": round(level, 4), "reference": reference, "arms": arms}


def _drawn_reaches(curves: Mapping[str, Curve], reference: str, small_is_good: bool) -> dict[str, np.ndarray]:
    """Per arm the iteration that reaches the level in each bootstrap sample, inf for never; empty for one training."""
    seeds, folds = curves[reference].values.shape[:2]
    resamples = RESAMPLES if seeds * folds > 1 else 0
    generator = np.random.default_rng(0)
    weights = (_draws(seeds, resamples, generator), _draws(folds, resamples, generator))
    found: dict[str, list[float]] = {name: [] for name in curves}
    for of_seeds, of_folds in zip(*weights):
        means = {name: np.einsum("s,f,sfp->p", of_seeds, of_folds, curve.values) for name, curve in curves.items()}
        for name, curve in curves.items():
            iteration = curve.reaches(means[reference][-1], small_is_good, means[name])
            found[name].append(math.inf if iteration is None else iteration)
    return {name: np.array(iterations) for name, iterations in found.items()}


def _interval(drawn: np.ndarray) -> list[float | None] | None:
    if not drawn.size:
        return None
    ends = np.percentile(drawn, [2.5, 97.5], method="inverted_cdf")  # of the drawn values, some of which may be inf
    return [round(float(end), 2) if 0 < end < math.inf else None for end in ends]


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Rounded, None for NaN, which JSON does not have."""
    return {key: round(float(value), 4) if math.isfinite(value) else None for key, value in figures.items()}
