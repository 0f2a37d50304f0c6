"""Networks: the residual encoders and what stands on them."""

from __future__ import annotations

from med3d_ext.networks.decoders import LungDecoder, LungSegmenter
from med3d_ext.networks.denseaspp import DenseASPP, DenseASPPSegmenter
from med3d_ext.networks.lits import TwoStageSegmenter
from med3d_ext.networks.med3d import Classifier, Med3DNet, Segmenter, encoder_state_dict
from med3d_ext.networks.resnet import ResNetEncoder

__all__ = [
    "Classifier",
    "DenseASPP",
    "DenseASPPSegmenter",
    "LungDecoder",
    "LungSegmenter",
    "Med3DNet",
    "ResNetEncoder",
    "Segmenter",
    "TwoStageSegmenter",
    "encoder_state_dict",
]
