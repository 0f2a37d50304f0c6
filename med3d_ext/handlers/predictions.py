"""The result of classifying new images: a row with a probability per case, as CSV and as JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from med3d_ext.handlers.summary import CaseTable, Row, write_rows
from med3d_ext.io.files import write_json
from med3d_ext.metrics.classification import THRESHOLD

logger = logging.getLogger("med3d_ext.classify")


@dataclass(eq=False)
class PredictionTable(CaseTable):
    """Write ``predictions.csv`` and ``predictions.json`` when an inference ends.

    A row holds ``case`` (the file's name), for points ``name`` and ``x``, ``y``, ``z`` (mm, RAS), then ``probability``
    of the second class and ``prediction``, the class at a threshold of 0.5.

    Args:
        output_dir: folder of the two files.
        classes: "0" and "1" to the name of the class.
        skipped: what was left out, a sentence each; the JSON repeats them.
    """

    classes: Mapping[str, str]
    skipped: Sequence[str] = ()

    def row(self, item: Any, output: Any) -> Row:
        row: Row = {"case": str(item["image"].meta["filename_or_obj"])}
        if "center" in item:
            place = [round(float(value), 3) for value in item["center"]]
            row |= {"name": item["name"], **dict(zip("xyz", place))}
        probability = float(output["pred"][1])
        predicted = self.classes[str(int(probability >= THRESHOLD))]
        return row | {"probability": round(probability, 6), "prediction": predicted}

    def write(self, rows: list[Row], details: dict[str, np.ndarray]) -> None:
        write_rows(self.folder / "predictions.csv", rows, ["case"])
        content = {
            "classes": dict(self.classes),
            "probability_of": self.classes["1"],
            "threshold": THRESHOLD,
            "n": len(rows),
            "skipped": list(self.skipped),
            "cases": rows,
        }
        write_json(self.folder / "predictions.json", content)
        positive = sum(row["prediction"] == self.classes["1"] for row in rows)
        logger.info(
            f"{len(rows)} classified, {positive} as {self.classes['1']}, {len(self.skipped)} skipped; "
            f"the table is {self.folder / 'predictions.csv'}"
        )
