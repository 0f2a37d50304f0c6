from __future__ import annotations

from med3d_ext.tools.experiments.studies import Study

__all__ = ["Study"]
