from __future__ import annotations

from med3d_ext.data.batches import GridBatchSampler
from med3d_ext.data.branches import branch_classes, class_count
from med3d_ext.data.dataset import SeededDataset
from med3d_ext.data.domains import label_values
from med3d_ext.data.loader import TrainingLoader
from med3d_ext.data.negatives import scans_without_target
from med3d_ext.data.nodules_to_classify import NodulesToClassify
from med3d_ext.data.prepared_data import PreparedData, images_to_segment
from med3d_ext.data.sampler import BalancedSampler
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
