"""The one door for weights: files, whose they are, what a training starts from."""

from __future__ import annotations

from med3d_ext.weights.coarse import CoarseRestart, CoarseStage
from med3d_ext.weights.initial import InitialWeights, find_weights

__all__ = ["CoarseRestart", "CoarseStage", "InitialWeights", "find_weights"]
