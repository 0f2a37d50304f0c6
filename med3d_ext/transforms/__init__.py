from __future__ import annotations

from med3d_ext.io.volumes import LoadVolumed, load_volume
from med3d_ext.transforms.crop import CropTargetd
from med3d_ext.transforms.cubes import CropCubed, RandCropCubed
from med3d_ext.transforms.intensity import HUWindowd, PercentileNormalized
from med3d_ext.transforms.label_map import LogitsToLabelMapd
from med3d_ext.transforms.labels import MergeLabelsd
from med3d_ext.transforms.sampling import RandTargetCropd, ResampleToGridd
from med3d_ext.transforms.spacing import MedianSpacingd

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
