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
        own = torch.tensor(self.cases, dtype=torch.float64).reshape(-1, 2)
        own = own.to(engine.state.device)  # what several processes gather lies on their device
        value, figures = _scores(evenly_divisible_all_gather(own, concat=True).cpu().numpy())
        if np.isnan(figures["val_auc"]):
            logger.warning(f"the validation cases are of one class: {name} is their mean likelihood, not an AUC")
        engine.state.metrics |= {name: value, "val_accuracy": figures["val_accuracy"], "val_loss": figures["val_loss"]}

    def compute(self) -> float:
        """The metric's value over the cases of this process."""
        return _scores(np.array(self.cases))[0]


def _scores(cases: np.ndarray) -> tuple[float, dict[str, float]]:
    """The metric's value; and AUC (NaN for one class), accuracy and cross-entropy of cases (probability, label)."""
    probabilities, labels = cases.T
    loss = -np.log(np.clip(np.where(labels > 0, probabilities, 1 - probabilities), 1e-7, 1)).mean()
    found = {"val_auc": auc(labels, probabilities), "val_accuracy": accuracy(labels, probabilities), "val_loss": loss}
    figures = {name: float(value) for name, value in found.items()}
    return float(np.exp(-loss)) if np.isnan(figures["val_auc"]) else figures["val_auc"], figures
