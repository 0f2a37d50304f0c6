from __future__ import annotations

from med3d_ext.data.dataset import SeededDataset
from med3d_ext.data.fingerprint import weights_domain
from med3d_ext.data.prepare import PreparedData, images_to_segment
from med3d_ext.data.sampler import BalancedSampler

__all__ = ["BalancedSampler", "PreparedData", "SeededDataset", "images_to_segment", "weights_domain"]
