"""Inferers."""

from __future__ import annotations

from med3d_ext.inferers.cascade import CascadeInferer

__all__ = ["CascadeInferer"]
