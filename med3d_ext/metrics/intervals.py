"""Means that say how sure they are: bootstrap intervals over cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over cases, lower and upper end.

    With a handful of cases the interval is too narrow: a lower bound of the uncertainty. n is stated next to it.

    Args:
        values: one finite value per case; at least one.
        confidence: share of the bootstrap means inside the interval.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.
    """
    sample = np.sort(np.asarray(values, dtype=float))  # several processes give the cases in another order
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values must be finite and at least one, got {list(values)}.")
    if sample.size == 1:  # scipy asks for two
        return float(sample[0]), float(sample[0])
    settings = {"n_resamples": resamples, "confidence_level": confidence, "rng": np.random.default_rng(seed)}
    low, high = bootstrap((sample,), np.mean, method="percentile", **settings).confidence_interval
    return float(low), float(high)


def describe_metric(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, bootstrap interval, minimum and the number of cases without a value (NaN) of one metric.

    A single case has no interval.
    """
    sample = np.asarray(values, dtype=float).ravel()
    finite = sample[np.isfinite(sample)]
    several, some = finite.size > 1, finite.size > 0
    return {
        "n": int(finite.size),
        "mean": round(float(finite.mean()), 4) if some else None,
        "interval_95": [round(end, 4) for end in bootstrap_interval(finite)] if several else None,
        "minimum": round(float(finite.min()), 4) if some else None,
        "undefined": int(sample.size - finite.size),
    }
