"""Two runs on the same cases: how large is the difference, and could it be chance?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from med3d_ext.metrics.intervals import bootstrap_interval

# Two-sided, n differences of one sign have a probability of 2 / 2^n: 0.0625 for five, 0.031 for six.
PAIRS_FOR_SIGNIFICANCE = 6


def paired_test(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Wilcoxon's signed-rank test and the bootstrap interval of the mean difference ``values - others``.

    Args:
        values: one value per case.
        others: the other run's values of the same cases.

    Returns:
        ``n`` pairs with both values, ``excluded`` pairs with one value only, ``differing`` pairs (equal ones say
        nothing to the test), ``mean_difference``, ``interval_95`` (None below two pairs), ``p_value`` (two-sided; 1
        where no pair differs, None without pairs) and ``note``, which says when the test cannot reach 0.05.

    Raises:
        ValueError: when the lengths differ.
    """
    if len(values) != len(others):
        raise ValueError(f"others must hold {len(values)} values, got {len(others)}.")
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    both = np.isfinite(first) & np.isfinite(second)
    excluded = int((np.isfinite(first) ^ np.isfinite(second)).sum())
    differences = first[both] - second[both]
    differing = differences[differences != 0]
    few = len(differing) < PAIRS_FOR_SIGNIFICANCE
    note = f"{len(differing)} differing pairs: fewer than 6 cannot reach p < 0.05" if few else None
    interval = list(bootstrap_interval(differences.tolist())) if len(differences) > 1 else None
    return {
        "n": len(differences),
        "excluded": excluded,
        "differing": len(differing),
        "mean_difference": float(differences.mean()) if len(differences) else None,
        "interval_95": interval,
        "p_value": _p_value(differences, differing),
        "note": note,
    }


def _p_value(differences: np.ndarray, differing: np.ndarray) -> float | None:
    if not len(differences):
        return None
    return float(wilcoxon(differing).pvalue) if len(differing) else 1.0
