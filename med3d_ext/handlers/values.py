"""The numbers that an engine holds after an iteration or an epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers.utils import from_engine


def iteration_loss(engine: Engine) -> float | None:
    """The loss of the trainer's last iteration; None where its output holds none."""
    with contextlib.suppress(KeyError, TypeError, IndexError):
        loss = from_engine(["loss"], first=True)(engine.state.output)
        return float(loss[0] if isinstance(loss, tuple) else loss)
    return None


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every number in an engine's metrics, by a flat name.

    A metric of several values gives one name each: ``val_mean_dice`` with ``{"liver": 0.9}`` becomes
    ``val_mean_dice_liver``; a vector's entries count from 0. What is not a number is left out.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= scalar_metrics({f"{name}_{key}": inner for key, inner in value.items()})
        elif isinstance(value, int | float):
            flat[name] = float(value)
        elif torch.is_tensor(value) or hasattr(value, "dtype"):
            values = torch.as_tensor(value).flatten().tolist()
            flat |= {name: values[0]} if len(values) == 1 else {f"{name}_{i}": v for i, v in enumerate(values)}
    return flat


def key_metric(engine: Any) -> tuple[str, float] | None:
    """Name and value of an engine's key metric; None before its first run or where it has none."""
    name = None if engine is None else getattr(engine.state, "key_metric_name", None)
    if name is None:
        return None
    value = scalar_metrics(engine.state.metrics).get(name)
    return None if value is None else (name, value)
