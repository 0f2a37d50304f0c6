"""Inferers."""

from __future__ import annotations

from med3d_ext.inferers.cascade import CascadeInferer
from med3d_ext.inferers.stage import StageInferer

__all__ = ["CascadeInferer", "StageInferer"]
