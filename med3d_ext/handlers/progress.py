"""How far a training is and when it will be done."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from ignite.engine import Engine
from ignite.handlers import ProgressBar as EpochBar

from med3d_ext.handlers.base import Handler, iteration_loss, key_metric
from med3d_ext.run.rank import rank


class ProgressBar(Handler):
    """A line per epoch on stderr, and on a terminal ignite's progress bar within the epoch.

    A line shows the epoch, its mean loss, the latest validation's key metric, the time elapsed and the time left.
    The INFO entries of ignite's engines and of MONAI's ``StatsHandler``, which say the same, are turned off.

    Args:
        evaluator: the engine whose key metric is shown. Defaults to none.
    """

    after_others = True

    def __init__(self, evaluator: Any = None) -> None:
        self.evaluator = evaluator
        self._losses: list[float] = []
        self._begin: float | None = None

    def attach(self, engine: Any) -> None:
        names = [one.logger.name for one in (engine, self.evaluator) if one is not None]
        for name in (*names, "monai.handlers.StatsHandler"):
            logging.getLogger(name).setLevel(logging.WARNING)
        super().attach(engine)
        if rank() == 0 and sys.stderr.isatty():
            bar = EpochBar(desc="epoch", dynamic_ncols=True)
            bar.attach(engine, output_transform=lambda _: {"loss": self._losses[-1] if self._losses else float("nan")})

    def epoch_started(self, engine: Engine) -> None:
        self._losses = []
        if self._begin is None:  # only now is it known where a training resumes
            self._begin, self._first = time.monotonic(), engine.state.iteration

    def iteration_completed(self, engine: Engine) -> None:
        loss = iteration_loss(engine)
        if loss is not None:
            self._losses.append(loss)

    def epoch_completed(self, engine: Engine) -> None:
        total = (engine.state.epoch_length or 0) * (engine.state.max_epochs or 0)
        elapsed, done = time.monotonic() - (self._begin or 0.0), engine.state.iteration - self._first
        parts = [f"epoch {engine.state.epoch}/{engine.state.max_epochs}"]
        if self._losses:
            parts.append(f"loss {sum(self._losses) / len(self._losses):.4f}")
        if metric := key_metric(self.evaluator):
            parts.append(f"{metric[0]} {metric[1]:.4f}")
        parts.append(f"{timedelta(seconds=round(elapsed))} elapsed")
        if total and done:
            left = max(0, round(elapsed / done * (total - engine.state.iteration)))
            parts.append(f"{timedelta(seconds=left)} left")
        print("  ".join(parts), file=sys.stderr, flush=True)
