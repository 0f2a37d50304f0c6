"""Measures of label maps in mm and ml as a MONAI metric, with the penalties that the verb ``evaluate`` declares."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from monai.utils import MetricReduction

from med3d_ext.metrics.segmentation import MEASURES, measure_class
from med3d_ext.transforms.sampling import axis_spacing


class LabelMapMetric(CumulativeIterationMetric):
    """One of the measures of :func:`~med3d_ext.metrics.segmentation.measure_class` of every class, in the label's mm.

    A missed structure counts with the declared penalty instead of leaving the mean, as MONAI's distances let it.

    Args:
        measure: name of the measure. Defaults to `assd_mm`.
        num_classes: classes, background counted. Defaults to 2.
        tolerance_mm: tolerance of the surface Dice. Defaults to 2.

    Raises:
        ValueError: there is no such measure.
    """

    def __init__(self, measure: str = "assd_mm", num_classes: int = 2, tolerance_mm: float = 2.0) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}.")
        self.measure = measure
        self.num_classes = num_classes
        self.tolerance_mm = tolerance_mm

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        if y is None:
            raise ValueError("y must be the label map, got None.")
        return torch.stack([self._one(prediction, label) for prediction, label in zip(y_pred, y)])

    def _one(self, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        affine = np.eye(4)
        if isinstance(label, MetaTensor):
            affine = np.asarray(label.affine.cpu(), float).reshape(-1, 4, 4)[0]
        maps = [np.asarray(torch.as_tensor(each).cpu()[0]) for each in (prediction, label)]
        spacing = axis_spacing(affine).tolist()
        measures = [
            measure_class(maps[0] == value, maps[1] == value, spacing, self.tolerance_mm)
            for value in range(1, self.num_classes)
        ]
        return torch.tensor([getattr(each, self.measure) for each in measures])

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """Mean over cases and classes that have a value."""
        return torch.nanmean(torch.as_tensor(self.get_buffer()))
