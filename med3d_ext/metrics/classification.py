"""How well probabilities tell two classes apart, and how far they can be believed: each figure with n and interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

THRESHOLD = 0.5
BINS = 10
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Share of cases on the right side of 0.5; labels and probabilities (..., n), as in all measures here."""
    return ((probabilities >= THRESHOLD) == (labels > 0)).mean(axis=-1)


def auc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive case has the higher probability; equal ones count half.

    NaN where a class is missing.
    """
    positive = labels.sum(axis=-1, dtype=float)
    negative = labels.shape[-1] - positive
    ranks = (rankdata(probabilities, axis=-1) * labels).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def sensitivity(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Share of the positive cases at 0.5 or above; NaN without any."""
    return _share(labels > 0, probabilities >= THRESHOLD)


def specificity(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Share of the negative cases below 0.5; NaN without any."""
    return _share(labels == 0, probabilities < THRESHOLD)


def _share(cases: np.ndarray, right: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (cases & right).sum(axis=-1) / cases.sum(axis=-1)


def brier(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Brier score: mean squared difference of probability and truth. 0 is perfect, 0.25 is always saying 0.5."""
    return ((probabilities - labels) ** 2).mean(axis=-1)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Expected calibration error: mean distance of stated and true frequency over ten equal bins, weighted by cases.

    Not 0 for a perfect model of few cases: the frequency in a bin then varies by chance.
    """
    bins = bin_of(probabilities)
    gaps = [np.abs(((probabilities - labels) * (bins == number)).sum(axis=-1)) for number in range(BINS)]
    return np.sum(gaps, axis=0) / labels.shape[-1]


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """Number (0 to 9) of the reliability plot's bin."""
    return np.clip((probabilities * BINS).astype(int), 0, BINS - 1)


# Measure and the cases that it counts: all, or those of one class
MEASURES: dict[str, tuple[Scores, int | None]] = {
    "accuracy": (accuracy, None),
    "auc": (auc, None),
    "sensitivity": (sensitivity, 1),
    "specificity": (specificity, 0),
    "brier": (brier, None),
    "calibration_error": (calibration_error, None),
}


def measure_classes(
    labels: Sequence[int], probabilities: Sequence[float], resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Every measure with its n and the 95 % percentile bootstrap interval over cases.

    Several nodules of one patient are counted as if they were independent: with many such, intervals are too narrow.

    Args:
        labels: 0 or 1 per case.
        probabilities: probability of class 1 per case.
        resamples: number of bootstrap samples; those without a class do not count for the measures that need it.
        seed: seed of the resampling.

    Returns:
        measure to ``n`` (cases that it counts), ``mean`` (its value; None where undefined) and ``interval_95`` (None
        below two cases).

    Raises:
        ValueError: when the lengths differ, a label is neither 0 nor 1, or a probability is not from 0 to 1.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if truth.shape != scores.shape or truth.ndim != 1:
        raise ValueError(f"probabilities must be {truth.shape[0]} numbers, one per label, got shape {scores.shape}.")
    if not np.isin(truth, (0, 1)).all() or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("labels must be 0 or 1 and probabilities from 0 to 1, got others.")
    if not truth.size:
        return {name: {"n": 0, "mean": None, "interval_95": None} for name in MEASURES}
    order = np.lexsort((scores, truth))  # several processes give the cases in another order
    truth, scores = truth[order], scores[order]
    draws = np.random.default_rng(seed).integers(0, truth.size, (resamples, truth.size))
    result = {}
    for name, (measure, counted) in MEASURES.items():
        value = float(measure(truth, scores))
        samples = measure(truth[draws], scores[draws])
        samples = samples[np.isfinite(samples)]
        known = bool(np.isfinite(value))
        n = int(truth.size if counted is None else (truth == counted).sum())
        interval = [round(float(end), 4) for end in np.percentile(samples, (2.5, 97.5))] if known and n > 1 else None
        result[name] = {"n": n, "mean": round(value, 4) if known else None, "interval_95": interval}
    return result
