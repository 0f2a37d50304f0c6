"""The area under the ROC curve of two runs on the same cases: each with an interval, and the difference with a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm


def pair_scores(labels: Sequence[float], probabilities: Sequence[Sequence[float]]) -> np.ndarray:
    """How often a positive case comes before a negative one, (positives, negatives): 1, 0, or a half for equal ones.

    The mean of all entries is the AUC.

    Args:
        labels: 0 or 1 per case.
        probabilities: per training (seed) the probability of each case; the result is the mean over the trainings.
    """
    truth, scores = np.asarray(labels) > 0, np.atleast_2d(np.asarray(probabilities, dtype=float))
    gaps = scores[:, truth][:, :, None] - scores[:, ~truth][:, None, :]
    return np.asarray(((np.sign(gaps) + 1) / 2).mean(axis=0))


def describe_auc(pairs: np.ndarray, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """n, mean and 95 % bootstrap interval over cases, as :func:`~med3d_ext.metrics.intervals.describe_metric` has them.

    Args:
        pairs: of :func:`pair_scores`; positive and negative cases are resampled each among themselves.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.
    """
    n = sum(pairs.shape)
    if not pairs.size:
        return {"n": n, "mean": None, "interval_95": None, "undefined": n}
    return {
        "n": n,
        "mean": round(float(pairs.mean()), 4),
        "interval_95": [round(end, 4) for end in _interval(pairs, resamples, seed)],
        "undefined": 0,
    }


def paired_auc_test(pairs: np.ndarray, others: np.ndarray, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """DeLong's test (Biometrics 44, 1988) of two AUCs on the same cases, and the bootstrap interval of the difference.

    Args:
        pairs: of :func:`pair_scores`.
        others: the other run's, of the same cases in the same order.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Returns:
        the keys of :func:`~med3d_ext.tools.evaluate.paired.paired_test`; ``p_value`` (two-sided) is None where a class has
        fewer than two cases.

    Raises:
        ValueError: when the shapes differ.
    """
    if pairs.shape != others.shape:
        raise ValueError(f"others must have the shape {pairs.shape}, got {others.shape}.")
    differences = pairs - others
    known = differences.size > 0
    return {
        "n": sum(pairs.shape),
        "excluded": 0,
        "differing": int((differences != 0).any(axis=1).sum() + (differences != 0).any(axis=0).sum()),
        "mean_difference": float(differences.mean()) if known else None,
        "interval_95": list(_interval(differences, resamples, seed)) if known else None,
        "p_value": _delong(differences) if min(pairs.shape) > 1 else None,
        "note": None if min(pairs.shape) > 1 else "a class has fewer than two cases: no test",
    }


def _delong(differences: np.ndarray) -> float:
    positives, negatives = differences.shape
    variance = differences.mean(axis=1).var(ddof=1) / positives + differences.mean(axis=0).var(ddof=1) / negatives
    if variance == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    return float(2 * norm.sf(abs(differences.mean()) / np.sqrt(variance)))


def _interval(pairs: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    positives, negatives = pairs.shape
    rows = generator.multinomial(positives, np.full(positives, 1 / positives), resamples)
    columns = generator.multinomial(negatives, np.full(negatives, 1 / negatives), resamples)
    means = np.einsum("rp,pn,rn->r", rows, pairs, columns, optimize=True) / pairs.size
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
