"""Experiments: ``compare`` and the studies, two front ends of one engine."""

from __future__ import annotations

from med3d_ext.errors import InputError

try:
    import pandas  # noqa: F401
except ImportError as error:
    raise InputError('compare and the studies need pandas; pip install "med3d-ext[tools]".') from error

from med3d_ext.tools.experiments.folds import CrossValidation
from med3d_ext.tools.experiments.study import Study

__all__ = ["CrossValidation", "Study"]
