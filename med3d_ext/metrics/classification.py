"""Two classes: how well probabilities tell them apart, how far they can be believed, and what size alone would say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather
from scipy.stats import binomtest, rankdata

from med3d_ext.io.files import write_atomically

logger = logging.getLogger("med3d_ext.evaluate")

THRESHOLD = 0.5
BINS = 10  # of the reliability plot and of the calibration error
SIZE_PRIOR_SD = 5.0  # of the slope: classes that size separates perfectly would make it infinite


def auc(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive case has the higher probability; equal ones count half.

    Labels and probabilities are (..., n), as in all measures here. NaN if a class is missing. Unlike scikit-learn's it
    takes all bootstrap samples at once, a hundred times as fast.
    """
    positive = labels.sum(axis=-1, dtype=float)
    ranks = (rankdata(probabilities, axis=-1) * labels).sum(axis=-1)
    return _ratio(ranks - positive * (positive + 1) / 2, positive * (labels.shape[-1] - positive))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Expected calibration error: mean distance of stated and true frequency over ten equal bins, weighted by cases.

    Not 0 for a perfect model of few cases: the frequency in a bin then varies by chance.
    """
    bins = _bins(probabilities)
    gaps = [np.abs(((probabilities - labels) * (bins == number)).sum(axis=-1)) for number in range(BINS)]
    return np.sum(gaps, axis=0) / labels.shape[-1]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole  # NaN of no cases


def _share_right(labels: np.ndarray, probabilities: np.ndarray, counted: np.ndarray) -> np.ndarray:
    right = (probabilities >= THRESHOLD) == (labels > 0)
    return _ratio((right & counted).sum(axis=-1), counted.sum(axis=-1))


def _bins(probabilities: np.ndarray) -> np.ndarray:
    return np.clip((probabilities * BINS).astype(int), 0, BINS - 1)


# Measure, and the class whose cases it counts: None for both
MEASURES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], int | None]] = {
    "accuracy": (lambda y, p: _share_right(y, p, y >= 0), None),
    "auc": (auc, None),
    "sensitivity": (lambda y, p: _share_right(y, p, y == 1), 1),
    "specificity": (lambda y, p: _share_right(y, p, y == 0), 0),
    "brier": (lambda y, p: ((p - y) ** 2).mean(axis=-1), None),
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
        measure to ``n`` (cases that it counts), ``mean`` (its value; None if undefined) and ``interval_95`` (None
        below two cases).

    Raises:
        ValueError: when the lengths differ, a label is neither 0 nor 1, or a probability is not from 0 to 1.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if truth.shape != scores.shape or truth.ndim != 1:
        raise ValueError(f"probabilities must be {truth.shape[0]} numbers, one per label, got shape {scores.shape}.")
    if not np.isin(truth, (0, 1)).all() or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("labels must be 0 or 1 and probabilities from 0 to 1, got others.")
    order = np.lexsort((scores, truth))  # several processes give the cases in another order
    truth, scores = truth[order], scores[order]
    draws = np.random.default_rng(seed).integers(0, max(1, truth.size), (resamples, truth.size))
    result: dict[str, dict[str, Any]] = {}
    for name, (measure, counted) in MEASURES.items():
        n = int(truth.size if counted is None else (truth == counted).sum())
        value = float(measure(truth, scores)) if n else np.nan
        result[name] = {"n": n, "mean": round(value, 4) if np.isfinite(value) else None, "interval_95": None}
        if np.isfinite(value) and n > 1:
            # Not scipy's bootstrap: one sample without a class would make its interval NaN.
            samples = measure(truth[draws], scores[draws])
            ends = np.percentile(samples[np.isfinite(samples)], (2.5, 97.5))
            result[name]["interval_95"] = [round(float(end), 4) for end in ends]
    return result


class ClassificationScore(Metric):
    """AUC of the validation cases, with ``val_accuracy`` and ``val_loss`` (cross-entropy) next to it.

    If the validation cases are all of one class, an AUC does not exist; the value is then the mean likelihood
    ``exp(-loss)``, so that the best epoch can still be chosen, and a warning says so.

    Expects decollated outputs: ``pred``, the probabilities of both classes, and ``label``, 0 or 1.
    """

    def reset(self) -> None:
        """Forget all cases."""
        self.cases: list[list[float]] = []

    def update(self, output: Any) -> None:
        """Add one case: (probabilities of both classes, label)."""
        probabilities, label = output
        self.cases.append([float(probabilities[1]), float(label)])

    def iteration_completed(self, engine: Any) -> None:
        """Add the cases of one batch of a MONAI evaluator."""
        for output in engine.state.output:
            self.update((output["pred"], output["label"]))

    def completed(self, engine: Any, name: str) -> None:
        """Write the metric and the figures next to it into the engine's state."""
        value = self.compute(engine.state.device)
        if self.one_class:
            logger.warning(f"the validation cases are of one class: {name} is their mean likelihood, not an AUC")
        engine.state.metrics |= {name: value, "val_accuracy": self.accuracy, "val_loss": self.loss}

    def compute(self, device: Any = "cpu") -> float:
        """The metric's value over the cases of all processes, which gather them on their ``device``."""
        own = torch.tensor(self.cases, dtype=torch.float64).reshape(-1, 2).to(device)
        probabilities, labels = evenly_divisible_all_gather(own, concat=True).cpu().numpy().T
        likelihoods = np.where(labels > 0, probabilities, 1 - probabilities)
        self.loss = float(-np.log(np.clip(likelihoods, 1e-7, 1)).mean())
        self.accuracy = float(MEASURES["accuracy"][0](labels, probabilities))
        value = float(auc(labels, probabilities))
        self.one_class = bool(np.isnan(value))
        return float(np.exp(-self.loss)) if self.one_class else value


class BestEpoch:
    """``metric_cmp_fn`` of MONAI's Evaluator: the epoch with the highest figure, of equal ones the latest.

    With fewer than ``minimum`` cases it is the latest epoch, which a schedule that ends at zero makes the likely best:
    the figure of a dozen cases jumps from epoch to epoch, and its maximum picks a lucky one in the middle of the
    schedule.

    Args:
        cases: the validation cases.
        minimum: number of cases from which on the figure chooses. Defaults to 30, where an AUC has a standard error of
            about 0.08.
    """

    def __init__(self, cases: Sized, minimum: int = 30) -> None:
        self.chooses = len(cases) >= minimum

    def __call__(self, current: float, best: float) -> bool:
        """Whether an epoch with the figure ``current`` takes the place of the one with ``best``."""
        return not self.chooses or current >= best


def size_baseline(volumes: Sequence[float], labels: Sequence[int]) -> Callable[[Sequence[float]], np.ndarray]:
    """What size alone says, the figure that a network has to beat: a logistic regression of the volume's logarithm.

    Of volumes above 0 in any unit and labels with both classes; gives volumes in that unit to probabilities of class 1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    # scikit-learn's C is the variance of a normal prior of the slope; the intercept has none
    regression = LogisticRegression(C=SIZE_PRIOR_SD**2, tol=1e-6)
    model = make_pipeline(FunctionTransformer(np.log), StandardScaler(), regression)
    model.fit(np.asarray(volumes, dtype=float)[:, None], labels)
    return lambda sizes: model.predict_proba(np.asarray(sizes, dtype=float)[:, None])[:, 1]


def draw_reliability(path: Path, labels: Sequence[int], probabilities: Sequence[float]) -> None:
    """Reliability plot (PNG): observed against stated frequency per tenth, with Wilson's 95 % interval and n."""
    truth, stated = np.asarray(labels), np.asarray(probabilities, dtype=float)
    figure, axes = _square("predicted probability", "observed frequency", (0, 1), "perfectly calibrated")
    bins = _bins(stated)
    for number in np.unique(bins):
        inside = bins == number
        n, place, observed = int(inside.sum()), float(stated[inside].mean()), float(truth[inside].mean())
        interval = binomtest(int(truth[inside].sum()), n).proportion_ci(method="wilson")
        axes.plot([place, place], list(interval), color="tab:blue", linewidth=1.5)
        axes.plot(place, observed, "o", color="tab:blue")
        axes.annotate(f"n={n}", (place, observed), xytext=(6, 0), textcoords="offset points", fontsize="small")
    shares = np.bincount(bins, minlength=BINS) / len(stated)
    axes.bar((np.arange(BINS) + 0.5) / BINS, shares, width=1 / BINS, color="tab:blue", alpha=0.2)
    axes.set_title(f"{len(truth)} cases; shaded: share of the cases", fontsize="medium")
    axes.legend(fontsize="small", loc="upper left")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)


def draw_roc(path: Path, scores: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """ROC curves (PNG) of labels and probabilities by name; one with a single class is left out."""
    figure, axes = _square("1 - specificity", "sensitivity", (-0.01, 1.01), "chance")
    for name, (labels, probabilities) in scores.items():
        truth, stated = np.asarray(labels), np.asarray(probabilities, dtype=float)
        if len(np.unique(truth)) > 1:
            cuts = [np.inf, *np.unique(stated)[::-1]]
            false, true = ([(stated[truth == value] >= cut).mean() for cut in cuts] for value in (0, 1))
            axes.plot(false, true, linewidth=1.5, label=f"{name}: AUC {float(auc(truth, stated)):.3f} (n={len(truth)})")
    axes.legend(fontsize="small", loc="lower right")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _square(xlabel: str, ylabel: str, limits: tuple[float, float], diagonal: str) -> tuple[Any, Any]:
    """A figure and its axes with a gray diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xlim=limits, ylim=limits)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, label=diagonal)
    return figure, axes
