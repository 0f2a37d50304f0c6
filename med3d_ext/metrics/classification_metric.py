"""The figures of a classification while it trains."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather

from med3d_ext.metrics.classification import accuracy, auc

logger = logging.getLogger("med3d_ext.evaluate")


class ClassificationScore(Metric):
    """AUC of the validation cases, with ``val_accuracy`` and ``val_loss`` (cross-entropy) beside it.

    Where the validation cases are all of one class an AUC does not exist; the value is then the mean likelihood
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
        """Write the metric and the figures beside it into the engine's state."""
        own = torch.tensor(self.cases, dtype=torch.float64).reshape(-1, 2)
        own = own.to(engine.state.device)  # what several processes gather lies on their device
        cases = evenly_divisible_all_gather(own, concat=True).cpu().numpy()
        figures = scores(cases[:, 1], cases[:, 0])
        if np.isnan(figures["auc"]):
            logger.warning(f"the validation cases are of one class: {name} is their mean likelihood, not an AUC")
        engine.state.metrics[name] = _value(figures)
        engine.state.metrics.update({"val_accuracy": figures["accuracy"], "val_loss": figures["loss"]})

    def compute(self) -> float:
        """The metric's value over the cases of this process."""
        cases = np.array(self.cases)
        return _value(scores(cases[:, 1], cases[:, 0]))


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC (NaN for one class), accuracy and cross-entropy."""
    of_truth = np.where(labels > 0, probabilities, 1 - probabilities)
    loss = -np.log(np.clip(of_truth, 1e-7, 1)).mean()
    figures = {"auc": auc(labels, probabilities), "accuracy": accuracy(labels, probabilities), "loss": loss}
    return {name: float(value) for name, value in figures.items()}


def _value(figures: dict[str, float]) -> float:
    return float(np.exp(-figures["loss"])) if np.isnan(figures["auc"]) else figures["auc"]
