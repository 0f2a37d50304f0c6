"""A training's numbers as CSV and its curves as PNG, while it runs."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from med3d_ext.handlers.base import Handler, iteration_loss, key_metric, scalar_metrics
from med3d_ext.handlers.summary import Row, write_rows
from med3d_ext.io.files import write_atomically

_POINTS = 2000  # of the iterations' curve: more than the picture has columns


@dataclass(eq=False)
class Curves(Handler):
    """Append to ``loss.csv`` and ``history.csv`` and redraw ``loss.png`` and ``dice.png`` (or ``<picture>.png``).

    ``loss.csv`` has a row per iteration; ``history.csv`` one per epoch: mean loss, learning rate, the trainer's own
    metrics and, if the epoch was validated, the evaluator's. A metric of several values, such as one per
    domain, gives a column and a line for each. After a resume the rows beyond the restored epoch are dropped;
    a new training starts the files anew.

    Args:
        output_dir: folder of the four files, made if missing.
        evaluator: the engine that validates. Defaults to none.
        metrics: names of the metrics in the second picture. Defaults to none: all with "dice" in their name, or the key
            metric if there is none.
        redraw_seconds: least time between two drawings during training. Defaults to 10.
        picture: name of the second picture without its suffix. Defaults to "dice".
    """

    after_others = True

    output_dir: str
    evaluator: Any = None
    metrics: Sequence[str] | None = None
    redraw_seconds: float = 10.0
    picture: str = "dice"

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir)
        self._iterations: list[Row] = []
        self._epochs: list[Row] = []
        self._started = False
        self._drawn = 0.0

    def epoch_started(self, engine: Any) -> None:
        optimizer = getattr(engine, "optimizer", None)
        self._learning_rate = {} if optimizer is None else {"learning_rate": optimizer.param_groups[0]["lr"]}
        if not self._started:
            self._started = True
            before = engine.state.epoch - 1
            self._iterations = _rows_until(self.folder / "loss.csv", before)
            self._epochs = _rows_until(self.folder / "history.csv", before)
            write_rows(self.folder / "loss.csv", self._iterations, ["iteration", "epoch", "loss"])

    def iteration_completed(self, engine: Engine) -> None:
        loss = iteration_loss(engine)
        if loss is None:
            return
        row = {"iteration": engine.state.iteration, "epoch": engine.state.epoch, "loss": loss}
        self._iterations.append(row)
        with open(self.folder / "loss.csv", "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row.values())
        self._draw_sometimes()

    def epoch_completed(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        losses = [row["loss"] for row in self._iterations if row["epoch"] == epoch]
        mean = {"loss": sum(losses) / len(losses)} if losses else {}
        row = {"epoch": epoch, **mean, **self._learning_rate, **scalar_metrics(engine.state.metrics)}
        if self.evaluator is not None and self.evaluator.state.epoch == epoch:
            row |= scalar_metrics(self.evaluator.state.metrics)
        self._epochs.append(row)
        write_rows(self.folder / "history.csv", self._epochs, ["epoch"])
        self._draw_sometimes()

    def completed(self, engine: Engine) -> None:
        if self._started:
            self.draw()
        self._started = False

    def draw(self) -> None:
        """Draw both pictures from the rows so far."""
        step = max(1, len(self._iterations) // _POINTS)
        length = {row["epoch"]: row["iteration"] for row in self._iterations}
        per_epoch = max(length.values(), default=1) / max(length, default=1)
        names = dict.fromkeys(name for row in self._epochs for name in row)
        columns = {name: [(row["epoch"], row[name]) for row in self._epochs if name in row] for name in names}
        points = [(row["iteration"] / per_epoch, row["loss"]) for row in self._iterations[::step]]
        losses = {name: column for name, column in columns.items() if "loss" in name}
        _draw(self.folder / "loss.png", "loss", {"each iteration": points, **losses})
        if self.metrics is not None:
            starts = tuple(start for metric in self.metrics for start in (f"{metric}_", f"{metric}/"))
            scores = [name for name in columns if name in self.metrics or name.startswith(starts)]
        else:
            key = key_metric(self.evaluator)
            scores = [name for name in columns if "dice" in name.lower()]
            if not scores and key is not None and key[0] in columns:
                scores = [key[0]]
        if scores:
            label = "Dice" if self.metrics is None else "metric"
            _draw(self.folder / f"{self.picture}.png", label, {name: columns[name] for name in scores})

    def _draw_sometimes(self) -> None:
        if time.monotonic() - self._drawn >= self.redraw_seconds:
            self.draw()
            self._drawn = time.monotonic()


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


def _draw(path: Path, label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    from matplotlib.figure import Figure  # not pyplot: its state and its choice of a screen belong to the caller

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=label)
    for name, points in lines.items():
        faint = {"linewidth": 0.5, "alpha": 0.5} if name == "each iteration" else {"marker": ".", "linewidth": 1.5}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, **faint)  # type: ignore[arg-type]
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
