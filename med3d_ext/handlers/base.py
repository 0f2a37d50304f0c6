"""What the handlers have in common: methods named after ignite's events, and the numbers that an engine holds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers.utils import from_engine

from med3d_ext.run.rank import rank


class Handler:
    """A MONAI handler whose methods are called at the events that they are named after, such as ``epoch_started``.

    Attributes:
        every_rank: whether every process calls them. Defaults to False: rank 0 alone.
        after_others: whether ``epoch_completed`` follows the validation, the scheduler and all else that is attached,
            in whatever order the handlers are listed. Defaults to False.
    """

    every_rank = False
    after_others = False

    def attach(self, engine: Engine) -> None:
        """Register with the engine."""
        if rank() > 0 and not self.every_rank:
            return
        for event in Events:
            method = getattr(self, event.value, None)
            if method is not None and self.after_others and event is Events.EPOCH_COMPLETED:
                engine.add_event_handler(Events.STARTED, _register, event, method)
            elif method is not None:
                engine.add_event_handler(event, method)


def _register(engine: Engine, event: Events, method: Any) -> None:
    if not engine.has_event_handler(method, event):  # a second run
        engine.add_event_handler(event, method)


def iteration_loss(engine: Engine) -> float | None:
    """The loss of the trainer's last iteration; None if its output has none."""
    with contextlib.suppress(KeyError, TypeError, IndexError):
        loss = from_engine(["loss"], first=True)(engine.state.output)
        return float(loss[0] if isinstance(loss, tuple) else loss)
    return None


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every number in an engine's metrics, by a flat name; what is not a number is left out.

    ``val_mean_dice`` with ``{"liver": 0.9}`` becomes ``val_mean_dice_liver``; a vector's entries count from 0.
    """
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= scalar_metrics({f"{name}_{key}": inner for key, inner in value.items()})
        elif isinstance(value, int | float):
            flat[name] = float(value)
        elif hasattr(value, "dtype"):
            values = torch.as_tensor(value).flatten().tolist()
            flat |= {name: values[0]} if len(values) == 1 else {f"{name}_{i}": v for i, v in enumerate(values)}
    return flat


def key_metric(engine: Any) -> tuple[str, float] | None:
    """Name and value of an engine's key metric; None before its first run or if it has none."""
    name = getattr(getattr(engine, "state", None), "key_metric_name", None)
    value = scalar_metrics(engine.state.metrics).get(name) if name is not None else None
    return None if value is None else (str(name), value)
