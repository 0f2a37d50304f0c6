from __future__ import annotations

from med3d_ext.metrics.best_epoch import BestEpoch
from med3d_ext.metrics.classification import measure_classes
from med3d_ext.metrics.classification_metric import ClassificationScore
from med3d_ext.metrics.domain_dice import DomainDice
from med3d_ext.metrics.intervals import bootstrap_interval, describe_metric
from med3d_ext.metrics.label_map_metric import LabelMapMetric
from med3d_ext.metrics.roi import ROIMetric, region_of_interest
from med3d_ext.metrics.segmentation import ClassMeasures, global_dice, measure_class

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
