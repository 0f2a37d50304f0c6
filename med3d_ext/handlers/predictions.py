"""The result of classifying new images: a row with a probability per case, as CSV and as JSON."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events

from med3d_ext.io.files import told_apart, write_atomically, write_json
from med3d_ext.metrics.classification import THRESHOLD

logger = logging.getLogger("med3d_ext.classify")


class PredictionTable:
    """Write ``predictions.csv`` and ``predictions.json`` when an inference ends.

    A row holds ``case`` (the file's name), for points ``name`` and ``x``, ``y``, ``z`` (mm, RAS), then ``probability``
    of the second class and ``prediction``, the class at a threshold of 0.5.

    Args:
        output_dir: folder of the two files.
        classes: "0" and "1" to the name of the class.
        skipped: what was left out, a sentence each; the JSON repeats them.
    """

    def __init__(self, output_dir: str, classes: Mapping[str, str], skipped: Sequence[str] = ()) -> None:
        self.folder = Path(output_dir)
        self.classes = dict(classes)
        self.skipped = list(skipped)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with a MONAI evaluator whose postprocessing leaves probabilities."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_cases)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def note_cases(self, engine: Any) -> None:
        """Keep a row for every case of one batch."""
        for item, output in zip(engine.state.batch, engine.state.output):
            row: dict[str, Any] = {"case": str(item["image"].meta["filename_or_obj"])}
            if "center" in item:
                place = [round(float(value), 3) for value in item["center"]]
                row |= {"name": item["name"], **dict(zip("xyz", place))}
            probability = float(output["pred"][1])
            row["probability"] = round(probability, 6)
            row["prediction"] = self.classes[str(int(probability >= THRESHOLD))]
            self.rows.append(row)

    def write(self, engine: Any) -> None:
        """Write both files."""
        names = told_apart({row["case"]: os.path.basename(row["case"]) for row in self.rows})
        rows = [{**row, "case": names[row["case"]]} for row in self.rows]
        with write_atomically(self.folder / "predictions.csv", "w") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        content = {
            "classes": self.classes,
            "probability_of": self.classes["1"],
            "threshold": THRESHOLD,
            "n": len(rows),
            "skipped": self.skipped,
            "cases": rows,
        }
        write_json(self.folder / "predictions.json", content)
        positive = sum(row["prediction"] == self.classes["1"] for row in rows)
        logger.info(
            f"{len(rows)} classified, {positive} as {self.classes['1']}, {len(self.skipped)} skipped; "
            f"the table is {self.folder / 'predictions.csv'}"
        )
