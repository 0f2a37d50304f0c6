"""The command that runs a config: its options, its errors, where it comes from."""

from __future__ import annotations

from med3d_ext.run.start import StartRun

__all__ = ["StartRun"]
