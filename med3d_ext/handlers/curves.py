"""A training's numbers as CSV and its curves as PNG, while it runs."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from med3d_ext.handlers.values import iteration_loss, key_metric, scalar_metrics
from med3d_ext.io.files import write_atomically
from med3d_ext.run.rank import rank

Row = dict[str, Any]
_POINTS = 2000  # of the iterations' curve: more than the picture has columns


class Curves:
    """Append to ``loss.csv`` and ``history.csv`` and redraw ``loss.png`` and ``dice.png`` (or ``<picture>.png``).

    ``loss.csv`` has a row per iteration; ``history.csv`` one per epoch: mean loss, learning rate, the trainer's own
    metrics and, where the epoch was validated, the evaluator's. A metric of several values, such as one per
    domain, gives a column and a line for each. After a resume the rows beyond the restored epoch are dropped;
    a new training starts the files anew. Rank 0 writes.

    Args:
        output_dir: folder of the four files, made where missing.
        evaluator: the engine that validates. Defaults to none.
        metrics: names of the metrics in the second picture. Defaults to none: all with "dice" in their name, or the key
            metric if there is none.
        redraw_seconds: least time between two drawings during training. Defaults to 10.
        picture: name of the second picture without its suffix. Defaults to "dice".
    """

    def __init__(
        self,
        output_dir: str,
        evaluator: Any = None,
        metrics: Sequence[str] | None = None,
        redraw_seconds: float = 10.0,
        picture: str = "dice",
    ) -> None:
        self.folder = Path(output_dir)
        self.evaluator = evaluator
        self.metrics = metrics
        self.redraw_seconds = redraw_seconds
        self.picture = picture
        self._iterations: list[Row] = []
        self._epochs: list[Row] = []
        self._started = False
        self._drawn = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, wherever in its list of handlers."""
        if rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_iteration)
            engine.add_event_handler(Events.COMPLETED, self.finish)

    def start_epoch(self, engine: Any) -> None:
        """Note the learning rate; at the first epoch, take over the rows of the epochs before it."""
        optimizer = getattr(engine, "optimizer", None)
        self._learning_rate = None if optimizer is None else optimizer.param_groups[0]["lr"]
        if self._started:
            return
        self._started = True
        before = engine.state.epoch - 1
        self._iterations = _rows_until(self.folder / "loss.csv", before)
        self._epochs = _rows_until(self.folder / "history.csv", before)
        _write_rows(self.folder / "loss.csv", self._iterations, ["iteration", "epoch", "loss"])
        # Added now, not in `attach`: after the validation, in whatever order the two are listed.
        if not engine.has_event_handler(self.add_epoch, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.add_epoch)

    def add_iteration(self, engine: Engine) -> None:
        """Append the iteration's loss."""
        loss = iteration_loss(engine)
        if loss is None:
            return
        row = {"iteration": engine.state.iteration, "epoch": engine.state.epoch, "loss": loss}
        self._iterations.append(row)
        with open(self.folder / "loss.csv", "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row.values())
        self._draw_sometimes()

    def add_epoch(self, engine: Engine) -> None:
        """Write the epoch's row."""
        epoch = engine.state.epoch
        losses = [row["loss"] for row in self._iterations if row["epoch"] == epoch]
        row: Row = {"epoch": epoch}
        if losses:
            row["loss"] = sum(losses) / len(losses)
        if self._learning_rate is not None:
            row["learning_rate"] = self._learning_rate
        row |= scalar_metrics(engine.state.metrics)
        if self.evaluator is not None and self.evaluator.state.epoch == epoch:
            row |= scalar_metrics(self.evaluator.state.metrics)
        self._epochs.append(row)
        _write_rows(self.folder / "history.csv", self._epochs, ["epoch"])
        self._draw_sometimes()

    def finish(self, engine: Engine) -> None:
        """Draw once more at the end."""
        self._started = False
        self.draw()

    def draw(self) -> None:
        """Draw both pictures from the rows so far."""
        step = max(1, len(self._iterations) // _POINTS)
        length = {row["epoch"]: row["iteration"] for row in self._iterations}
        per_epoch = max(length.values(), default=1) / max(length, default=1)
        points = [(row["iteration"] / per_epoch, row["loss"]) for row in self._iterations[::step]]
        losses = {name: self._column(name) for name in self._names() if "loss" in name}
        _draw(self.folder / "loss.png", "loss", {"each iteration": points, **losses})
        scores = {name: self._column(name) for name in self._names() if self._is_score(name)}
        if any(scores.values()):
            _draw(self.folder / f"{self.picture}.png", "Dice" if self.metrics is None else "metric", scores)

    def _draw_sometimes(self) -> None:
        if time.monotonic() - self._drawn >= self.redraw_seconds:
            self.draw()
            self._drawn = time.monotonic()

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self._epochs for name in row))

    def _column(self, name: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in self._epochs if name in row]

    def _is_score(self, name: str) -> bool:
        if self.metrics is not None:
            return any(name == metric or name.startswith((f"{metric}_", f"{metric}/")) for metric in self.metrics)
        if any("dice" in other.lower() for other in self._names()):
            return "dice" in name.lower()
        key = key_metric(self.evaluator)
        return key is not None and name == key[0]


def _rows_until(path: Path, epoch: int) -> list[Row]:
    """The complete rows of a CSV file up to an epoch; a line that a kill cut short is left out."""
    rows: list[Row] = []
    if not path.is_file():
        return rows
    with open(path, encoding="utf-8", newline="") as file:
        for text in csv.DictReader(file):
            try:
                row: Row = {name: float(value) for name, value in text.items() if value}
                row |= {name: int(row[name]) for name in ("epoch", "iteration") if name in text}
            except (KeyError, TypeError, ValueError):
                continue
            if row["epoch"] <= epoch:
                rows.append(row)
    return rows


def _write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    with write_atomically(path, "w") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    # Not pyplot: its state and its choice of a screen belong to the caller.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=label)
    for name, points in lines.items():
        faint = {"linewidth": 0.5, "alpha": 0.5} if name == "each iteration" else {"marker": ".", "linewidth": 1.5}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, **faint)  # type: ignore[arg-type]
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
