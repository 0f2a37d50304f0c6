"""What size alone tells about malignancy: the figure that a network has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

SLOPE_SD = 5.0  # of a normal prior: classes that size separates perfectly would make the slope infinite


@dataclass(frozen=True)
class SizeBaseline:
    """Logistic regression of the logarithm of a nodule's volume.

    Args:
        intercept: logit of the probability at the mean logarithm.
        slope: change of the logit per standard deviation of the logarithm.
        center: mean of the training cases' logarithms.
        scale: their standard deviation.
        n: number of training cases.
    """

    intercept: float
    slope: float
    center: float
    scale: float
    n: int

    @classmethod
    def fit(cls, volumes: Sequence[float], labels: Sequence[int]) -> SizeBaseline:
        """Fit to the training cases.

        Args:
            volumes: volume of each nodule, above 0, in any unit.
            labels: 0 or 1.
        """
        sizes, truth = np.log(np.asarray(volumes, dtype=float)), np.asarray(labels, dtype=float)
        center, scale = float(sizes.mean()), float(sizes.std()) or 1.0
        standard = (sizes - center) / scale

        def loss(line: np.ndarray) -> float:
            logits = line[0] + line[1] * standard
            return float(np.sum(np.logaddexp(0, logits) - truth * logits) + (line[1] / SLOPE_SD) ** 2 / 2)

        intercept, slope = minimize(loss, np.zeros(2)).x
        return cls(float(intercept), float(slope), center, scale, len(truth))

    def probabilities(self, volumes: Sequence[float]) -> np.ndarray:
        """Probability of malignancy by volume, in the unit of the training cases."""
        sizes = np.log(np.asarray(volumes, dtype=float))
        return expit(self.intercept + self.slope * (sizes - self.center) / self.scale)
