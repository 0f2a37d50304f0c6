from __future__ import annotations

from med3d_ext.tools.experiments.study import Study

__all__ = ["Study"]
