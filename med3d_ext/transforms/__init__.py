from __future__ import annotations

from med3d_ext.transforms.crops import CropCubed, CropTargetd, RandCropCubed
from med3d_ext.transforms.load import LoadVolumed, load_volume
from med3d_ext.transforms.sampling import MedianSpacingd, RandTargetCropd, ResampleToGridd
from med3d_ext.transforms.values import HUWindowd, LogitsToLabelMapd, MergeLabelsd, PercentileNormalized

__all__ = [
    "CropCubed",
    "CropTargetd",
    "HUWindowd",
    "LoadVolumed",
    "LogitsToLabelMapd",
    "MedianSpacingd",
    "MergeLabelsd",
    "PercentileNormalized",
    "RandCropCubed",
    "RandTargetCropd",
    "ResampleToGridd",
    "load_volume",
]
