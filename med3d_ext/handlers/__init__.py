"""Handlers for MONAI's engines; a config names them as ``med3d_ext.handlers.<class>``."""

from __future__ import annotations

from med3d_ext.handlers.card import WeightsCard
from med3d_ext.handlers.checkpoint import ResumableCheckpoint
from med3d_ext.handlers.classification_summary import ClassificationSummary
from med3d_ext.handlers.curves import Curves
from med3d_ext.handlers.freeze import FreezeEncoder
from med3d_ext.handlers.manifest import RunManifest
from med3d_ext.handlers.overlay import OverlayImage
from med3d_ext.handlers.predictions import PredictionTable
from med3d_ext.handlers.progress import ProgressBar
from med3d_ext.handlers.sanity import SanitySheet
from med3d_ext.handlers.seeding import EpochSeed
from med3d_ext.handlers.summary import EvaluationSummary

__all__ = [
    "ClassificationSummary",
    "Curves",
    "EpochSeed",
    "EvaluationSummary",
    "FreezeEncoder",
    "OverlayImage",
    "PredictionTable",
    "ProgressBar",
    "ResumableCheckpoint",
    "RunManifest",
    "SanitySheet",
    "WeightsCard",
]
