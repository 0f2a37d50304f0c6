"""Training curves of the arms, and after how many iterations each reaches what training from scratch ends at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from med3d_ext.tools.experiments.arm_results import ArmResult
from med3d_ext.tools.experiments.figures import is_small_good

LOSS = "training loss"
_LEAST_WINDOW = 0.05  # of all iterations


@dataclass(frozen=True)
class Curve:
    """A quantity over the iterations, of every seed; the folds of a seed are averaged.

    Args:
        iterations: where the values stand (points,).
        seeds: the seeds (rows).
        values: (seeds, points); NaN where a seed has none.
    """

    iterations: np.ndarray
    seeds: Sequence[int]
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over the seeds."""
        return self.values.mean(axis=0)

    @property
    def final(self) -> float:
        """Where the mean ends."""
        return float(self.mean[-1]) if self.mean.size else math.nan

    def reaches(self, level: float, small_is_good: bool, values: np.ndarray | None = None) -> float | None:
        """The first iteration at which the mean, or other values on the same points, is as good as ``level``."""
        values = self.mean if values is None else values
        good = values <= level if small_is_good else values >= level
        return float(self.iterations[good.argmax()]) if good.any() else None


def loss_curves(results: Sequence[ArmResult]) -> tuple[dict[str, Curve], int]:
    """The smoothed training loss of every arm of one share, and the number of iterations that it is the mean of.

    The window is an epoch or 5 % of the training, whichever is longer, so that a lucky batch reaches nothing.
    """
    total = min(len(result.losses) for result in results)
    epoch = max(math.ceil(len(result.losses) / max(1, result.record["epochs"])) for result in results)
    window = min(total, max(epoch, math.ceil(_LEAST_WINDOW * total)))
    kernel = np.full(window, 1 / window)
    points = {
        id(result): [
            (iteration + window, value)
            for iteration, value in enumerate(np.convolve(result.losses[:total], kernel, "valid").tolist())
        ]
        for result in results
    }
    return _by_arm(results, points), window


def metric_curves(results: Sequence[ArmResult], metric: str) -> dict[str, Curve]:
    """A metric of the validation, of every arm of one share."""
    return _by_arm(results, {id(result): result.curve(metric) for result in results})


def _by_arm(results: Sequence[ArmResult], points: Mapping[int, Sequence[tuple[float, float]]]) -> dict[str, Curve]:
    """One curve per arm; folds of different length are averaged point by point, as far as all go."""
    curves = {}
    for start in dict.fromkeys(result.start for result in results):
        members = [result for result in results if result.start == start]
        size = min(len(points[id(result)]) for result in members)
        seeds = list(dict.fromkeys(result.facts["seed"] for result in members))
        grid = np.array([points[id(result)][:size] for result in members]).reshape(len(members), size, 2)
        rows = [np.mean([grid[i] for i, r in enumerate(members) if r.facts["seed"] == seed], axis=0) for seed in seeds]
        curves[start] = Curve(grid[:, :, 0].mean(axis=0), seeds, np.array(rows)[:, :, 1])
    return curves


def iterations_to_reach(curves: Mapping[str, Curve], quantity: str) -> dict[str, Any]:
    """When each arm is first as good as the better arm from scratch is at the end (the paper's 2x and 10x).

    ``times_faster`` is that arm's own first iteration at its final level, divided by the other's.

    Args:
        curves: of :func:`loss_curves` or :func:`metric_curves`; those from scratch have names that say so.
        quantity: the metric's name, which tells whether small values are the good ones.

    Returns:
        ``quantity``, ``level``, ``reference`` and per arm ``iteration`` (None: never), ``times_faster``, ``final`` and
        the iteration of each seed alone; all None where the quantity was never measured.
    """
    small = quantity == LOSS or is_small_good(quantity)
    finals = {name: curve.final for name, curve in curves.items() if name.startswith("scratch")}
    known = {name: final for name, final in finals.items() if math.isfinite(final)}
    if not known:
        return {"quantity": quantity, "level": None, "reference": None, "arms": {}}
    reference = (min if small else max)(known, key=lambda name: known[name])
    level = known[reference]
    base = curves[reference].reaches(level, small)
    arms = {}
    for name, curve in curves.items():
        iteration = curve.reaches(level, small)
        alone = {
            str(seed): curve.reaches(level, small, row) for seed, row in zip(curve.seeds, curve.values, strict=True)
        }
        arms[name] = {
            "iteration": iteration,
            "of": float(curve.iterations[-1]) if curve.iterations.size else None,
            "times_faster": None if iteration is None or base is None else round(base / iteration, 2),
            "final": round(curve.final, 4) if math.isfinite(curve.final) else None,
            "per_seed": alone,
        }
    return {"quantity": quantity, "level": round(level, 4), "reference": reference, "arms": arms}
