from __future__ import annotations

from med3d_ext.tools.predict.predictor import BundlePredictor, LabelMap

__all__ = ["BundlePredictor", "LabelMap"]
