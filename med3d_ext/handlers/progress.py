"""How far a training is and when it will be done."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from ignite.engine import Engine, Events

from med3d_ext.handlers.values import iteration_loss, key_metric
from med3d_ext.run.rank import rank


class ProgressBar:
    """One bar over the whole training on a terminal; elsewhere one plain line per epoch.

    Both show epoch, loss, the latest validation's key metric, the time gone and the time left, on stderr.
    The INFO entries of ignite's engines and of MONAI's ``StatsHandler``, which say the same, are turned off.
    Rank 0 alone shows anything.

    Args:
        evaluator: the engine whose key metric is shown. Defaults to none.
        bar: True for the bar, False for the lines. Defaults to None: the bar on a terminal.
    """

    def __init__(self, evaluator: Any = None, bar: bool | None = None) -> None:
        self.evaluator = evaluator
        self.bar = bar
        self._bar: Any = None
        self._losses: list[float] = []
        self._started = False

    def attach(self, engine: Any) -> None:
        """Attach to a trainer, wherever in its list of handlers."""
        names = [one.logger.name for one in (engine, self.evaluator) if one is not None]
        for name in (*names, "monai.handlers.StatsHandler"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
            engine.add_event_handler(Events.COMPLETED, self.close)
            engine.add_event_handler(Events.TERMINATE, self.close)

    def start_epoch(self, engine: Engine) -> None:
        """Begin the bar with the first epoch: only then is it known where a training continues."""
        self._losses = []
        if self._started:
            return
        self._started = True
        self._begin, self._first = time.monotonic(), engine.state.iteration
        self._total = (engine.state.epoch_length or 0) * (engine.state.max_epochs or 0)
        if sys.stderr.isatty() if self.bar is None else self.bar:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total or None, initial=self._first, unit="it", dynamic_ncols=True)
        # Added now, not in `attach`: after the validation, in whatever order the two are listed.
        if not engine.has_event_handler(self.finish_epoch, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish_epoch)

    def step(self, engine: Engine) -> None:
        """Count an iteration."""
        loss = iteration_loss(engine)
        if loss is not None:
            self._losses.append(loss)
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix_str("  ".join(self._figures(loss)), refresh=False)
            self._bar.update(1)

    def finish_epoch(self, engine: Engine) -> None:
        """Print the epoch's line, or the validation's result in the bar."""
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        figures = self._figures(mean)
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(figures))
            return
        elapsed = time.monotonic() - self._begin
        done = engine.state.iteration - self._first
        times = [f"{_clock(elapsed)} elapsed"]
        if self._total and done:
            times.append(f"{_clock(elapsed / done * (self._total - engine.state.iteration))} left")
        epoch = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
        print("  ".join([epoch, *figures, *times]), file=sys.stderr, flush=True)

    def close(self, engine: Engine) -> None:
        """End the bar, so that what follows starts on its own line."""
        self._started = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _figures(self, loss: float | None) -> list[str]:
        figures = [] if loss is None else [f"loss {loss:.4f}"]
        metric = key_metric(self.evaluator)
        return [*figures, f"{metric[0]} {metric[1]:.4f}"] if metric else figures


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
