from __future__ import annotations

from med3d_ext.transforms.load import LoadVolumed, load_volume
from med3d_ext.transforms.sampling import RandTargetCropd, ResampleToGridd

__all__ = ["LoadVolumed", "RandTargetCropd", "ResampleToGridd", "load_volume"]
