from __future__ import annotations

from med3d_ext.data.datalists import scans_without_target
from med3d_ext.data.domains import branch_classes, class_count, label_values
from med3d_ext.data.loader import BalancedSampler, GridBatchSampler, SeededDataset, TrainingLoader
from med3d_ext.data.nodules_to_classify import NodulesToClassify
from med3d_ext.data.prepared_data import PreparedData, images_to_segment
from med3d_ext.io.facts import target_spacing, weights_domain, weights_domains

__all__ = [
    "BalancedSampler",
    "GridBatchSampler",
    "NodulesToClassify",
    "PreparedData",
    "SeededDataset",
    "TrainingLoader",
    "branch_classes",
    "class_count",
    "images_to_segment",
    "label_values",
    "scans_without_target",
    "target_spacing",
    "weights_domain",
    "weights_domains",
]
