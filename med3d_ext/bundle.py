"""Where configs of version 0.1 look for the first step of a run, which refuses them with the new names."""

from __future__ import annotations

from med3d_ext.run import StartRun

__all__ = ["StartRun"]
