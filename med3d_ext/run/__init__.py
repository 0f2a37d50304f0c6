"""The command that runs a config: its options, its errors, where it comes from."""

from __future__ import annotations

from typing import Any

__all__ = ["StartRun"]


def __getattr__(name: str) -> Any:
    """Loaded when a config names it: it needs torch, which a verb's help does without."""
    if name == "StartRun":
        from med3d_ext.run.start import StartRun

        return StartRun
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
