"""Losses."""

from __future__ import annotations

from med3d_ext.losses.multi_head import MultiHeadLoss

__all__ = ["MultiHeadLoss"]
