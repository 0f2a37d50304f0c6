from __future__ import annotations

from med3d_ext.metrics.classification import BestEpoch, ClassificationScore, measure_classes
from med3d_ext.metrics.intervals import bootstrap_interval, describe_metric
from med3d_ext.metrics.roi import ROIMetric, region_of_interest
from med3d_ext.metrics.segmentation import ClassMeasures, DomainDice, LabelMapMetric, global_dice, measure_class

__all__ = [
    "BestEpoch",
    "ClassMeasures",
    "ClassificationScore",
    "DomainDice",
    "LabelMapMetric",
    "ROIMetric",
    "bootstrap_interval",
    "describe_metric",
    "global_dice",
    "measure_class",
    "measure_classes",
    "region_of_interest",
]
