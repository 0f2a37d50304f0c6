from __future__ import annotations

from med3d_ext.metrics.domain_dice import DomainDice
from med3d_ext.metrics.intervals import bootstrap_interval, describe_metric
from med3d_ext.metrics.roi import ROIMetric, region_of_interest

__all__ = ["DomainDice", "ROIMetric", "bootstrap_interval", "describe_metric", "region_of_interest"]
