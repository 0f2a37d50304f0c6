from __future__ import annotations

from med3d_ext.transforms.cubes import CropCubed, RandCropCubed
from med3d_ext.transforms.intensity import PercentileNormalized
from med3d_ext.transforms.labels import MergeLabelsd
from med3d_ext.transforms.load import LoadVolumed, load_volume
from med3d_ext.transforms.sampling import RandTargetCropd, ResampleToGridd
from med3d_ext.transforms.spacing import MedianSpacingd

__all__ = [
    "CropCubed",
    "LoadVolumed",
    "MedianSpacingd",
    "MergeLabelsd",
    "PercentileNormalized",
    "RandCropCubed",
    "RandTargetCropd",
    "ResampleToGridd",
    "load_volume",
]
