"""The two pictures of a classification: can its probabilities be believed, and what does each threshold cost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from med3d_ext.io.files import write_atomically
from med3d_ext.metrics.classification import BINS, auc, bin_of


def draw_reliability(path: str | Path, labels: Sequence[int], probabilities: Sequence[float]) -> None:
    """Reliability plot (PNG): observed against stated frequency per tenth, with Wilson's 95 % interval and n.

    Args:
        path: the file to write.
        labels: 0 or 1 per case.
        probabilities: probability of class 1 per case.
    """
    from matplotlib.figure import Figure

    truth, stated = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, label="perfectly calibrated")
    bins = bin_of(stated)
    for number in np.unique(bins):
        inside = bins == number
        n, observed = int(inside.sum()), float(truth[inside].mean())
        low, high = wilson_interval(observed, n)
        place = float(stated[inside].mean())
        axes.plot([place, place], [low, high], color="tab:blue", linewidth=1.5)
        axes.plot(place, observed, "o", color="tab:blue")
        axes.annotate(f"n={n}", (place, observed), xytext=(6, 0), textcoords="offset points", fontsize="small")
    shares = np.bincount(bins, minlength=BINS) / len(stated)
    axes.bar((np.arange(BINS) + 0.5) / BINS, shares, width=1 / BINS, color="tab:blue", alpha=0.2)
    axes.set_title(f"{len(truth)} cases; shaded: share of the cases", fontsize="medium")
    axes.legend(fontsize="small", loc="upper left")
    with write_atomically(Path(path)) as file:
        figure.savefig(file, format="png", dpi=100)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``n`` cases, which stays within 0 and 1 also for a single one."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(max(0.0, middle - reach)), float(min(1.0, middle + reach))


def draw_roc(path: str | Path, scores: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """ROC curves (PNG).

    Args:
        path: the file to write.
        scores: name of each curve to its labels and probabilities; one with a single class is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.add_subplot(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, label="chance")
    for name, (labels, probabilities) in scores.items():
        truth, stated = np.asarray(labels), np.asarray(probabilities, dtype=float)
        if len(np.unique(truth)) < 2:
            continue
        false, true = roc_points(truth, stated)
        axes.plot(false, true, linewidth=1.5, label=f"{name}: AUC {float(auc(truth, stated)):.3f} (n={len(truth)})")
    axes.legend(fontsize="small", loc="lower right")
    with write_atomically(Path(path)) as file:
        figure.savefig(file, format="png", dpi=100)


def roc_points(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at every threshold from above the highest probability down to the lowest."""
    thresholds = np.unique(probabilities)[::-1]
    positive = np.array([probabilities >= threshold for threshold in thresholds])
    rates = [(positive & (labels == value)).sum(axis=1) / (labels == value).sum() for value in (0, 1)]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true
