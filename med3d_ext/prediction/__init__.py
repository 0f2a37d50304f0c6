from __future__ import annotations

from med3d_ext.prediction.label_map_file import LabelMapWriter, label_map_name, read_label_names, write_label_map
from med3d_ext.prediction.predictor import BundlePredictor, LabelMap

__all__ = ["BundlePredictor", "LabelMap", "LabelMapWriter", "label_map_name", "read_label_names", "write_label_map"]
