"""How far a training is and when it will be done."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar as EpochBar

from med3d_ext.handlers.values import iteration_loss, key_metric
from med3d_ext.run.rank import rank


class ProgressBar:
    """A line per epoch on stderr, and on a terminal ignite's progress bar within the epoch.

    A line shows the epoch, its mean loss, the latest validation's key metric, the time elapsed and the time left.
    The INFO entries of ignite's engines and of MONAI's ``StatsHandler``, which say the same, are turned off.
    Only rank 0 shows anything.

    Args:
        evaluator: the engine whose key metric is shown. Defaults to none.
        bar: whether to show the bar. Defaults to None: on a terminal.
    """

    def __init__(self, evaluator: Any = None, bar: bool | None = None) -> None:
        self.evaluator = evaluator
        self.bar = bar
        self._losses: list[float] = []
        self._begin: float | None = None

    def attach(self, engine: Any) -> None:
        """Attach to a trainer, wherever in its list of handlers."""
        names = [one.logger.name for one in (engine, self.evaluator) if one is not None]
        for name in (*names, "monai.handlers.StatsHandler"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        if sys.stderr.isatty() if self.bar is None else self.bar:
            bar = EpochBar(desc="epoch", dynamic_ncols=True)
            bar.attach(engine, output_transform=lambda _: {"loss": self._losses[-1] if self._losses else float("nan")})

    def start_epoch(self, engine: Engine) -> None:
        """Start the clock with the first epoch: only then is it known where a training resumes."""
        self._losses = []
        if self._begin is None:
            self._begin, self._first = time.monotonic(), engine.state.iteration
        # Added now, not in `attach`: after the validation, in whatever order the two are listed.
        if not engine.has_event_handler(self.finish_epoch, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish_epoch)

    def step(self, engine: Engine) -> None:
        """Keep an iteration's loss."""
        loss = iteration_loss(engine)
        if loss is not None:
            self._losses.append(loss)

    def finish_epoch(self, engine: Engine) -> None:
        """Print the epoch's line."""
        total = (engine.state.epoch_length or 0) * (engine.state.max_epochs or 0)
        elapsed, done = time.monotonic() - (self._begin or 0.0), engine.state.iteration - self._first
        parts = [f"epoch {engine.state.epoch}/{engine.state.max_epochs}"]
        if self._losses:
            parts.append(f"loss {sum(self._losses) / len(self._losses):.4f}")
        metric = key_metric(self.evaluator)
        if metric is not None:
            parts.append(f"{metric[0]} {metric[1]:.4f}")
        parts.append(f"{_clock(elapsed)} elapsed")
        if total and done:
            parts.append(f"{_clock(elapsed / done * (total - engine.state.iteration))} left")
        print("  ".join(parts), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
