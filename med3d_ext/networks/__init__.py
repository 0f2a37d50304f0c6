"""Networks: the residual encoders, and the decoders and heads on them."""

from __future__ import annotations

from med3d_ext.networks.decoders import DenseASPP, LungDecoder, SkipConnections
from med3d_ext.networks.med3d import (
    Classifier,
    MeanOfNetworks,
    Med3DNet,
    SegmentationNetwork,
    Segmenter,
    TwoStageSegmenter,
    encoder_state_dict,
    mean_of,
)
from med3d_ext.networks.resnet import ResNetEncoder

__all__ = [
    "Classifier",
    "DenseASPP",
    "LungDecoder",
    "MeanOfNetworks",
    "Med3DNet",
    "ResNetEncoder",
    "SegmentationNetwork",
    "Segmenter",
    "SkipConnections",
    "TwoStageSegmenter",
    "encoder_state_dict",
    "mean_of",
]
