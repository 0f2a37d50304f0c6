"""What the evaluation of a classifier leaves behind: a row per case, figures with n and intervals, two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from med3d_ext.data.leakage import Evaluated
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.handlers.summary import CaseTable, Row, logger, write_evaluation
from med3d_ext.metrics.classification import THRESHOLD, draw_reliability, draw_roc, measure_classes, size_baseline

MODEL = "logistic regression of the logarithm of the mask's volume"


@dataclass(eq=False)
class ClassificationSummary(CaseTable):
    """Write ``cases.csv``, ``summary.json``, ``reliability.png`` and ``roc.png`` when an evaluation ends.

    The figures are those of :func:`med3d_ext.metrics.classification.measure_classes`, as ``val_accuracy`` and so on.
    Next to them, as ``size_only_accuracy`` and so on, are those of a logistic regression of the mask's volume, which
    is fitted on the cases that are not test and judged on the same evaluated cases; cases without a mask are not
    counted there. It needs scikit-learn: without it a warning says that these figures are missing.

    Args:
        output_dir: folder of the files.
        split: name of the evaluated split, written into the summary.
        data: the data that is evaluated, which knows the masks' volumes. Defaults to none: no baseline.
        evaluated: says what must be known before the figures. Defaults to None, which says nothing.
    """

    split: str = "test"
    data: PreparedData | None = None
    evaluated: Evaluated | None = None

    def row(self, item: Any, output: Any) -> Row:
        label, probability = int(output["label"]), float(output["pred"][1])
        return {
            "case": str(item["image"].meta["filename_or_obj"]),
            "domain": str(item.get("domain", "all")),
            "label": label,
            "probability": probability,
            "val_accuracy": int((probability >= THRESHOLD) == bool(label)),
            "val_brier": (probability - label) ** 2,
            "sha256": item.get("sha256"),
        }

    def write(self, rows: list[Row], details: dict[str, np.ndarray]) -> None:
        figures, models, sized = {}, {}, []
        for domain in dict.fromkeys(row["domain"] for row in rows):
            own = [row for row in rows if row["domain"] == domain]
            scored, models[domain] = size_only(own, domain, self.data)
            figures[domain] = {
                f"{prefix}_{name}": figure
                for prefix, members in (("val", own), ("size_only", scored))
                if members
                for name, figure in measure_classes(*_scores(members)).items()
            }
            sized += scored
        positive = None if self.data is None else self.data.domain["classes"]["1"]
        facts = {"threshold": THRESHOLD, "positive": positive, "size_only": models}
        table = [{key: value for key, value in row.items() if key != "sha256"} for row in rows]
        write_evaluation(self.folder, self.split, table, figures, facts, self.doubts)
        draw_reliability(self.folder / "reliability.png", *_scores(rows))
        draw_roc(self.folder / "roc.png", {"network": _scores(rows), "size only": _scores(sized)})


def size_only(rows: Sequence[Row], domain: str, data: PreparedData | None) -> tuple[list[Row], dict[str, Any] | None]:
    """Fit the baseline to a domain's masks of cases that are not test, and judge it on the masks of ``rows``.

    Returns:
        ``label`` and ``probability`` of the evaluated cases that have a mask, and the model with the number of cases
        that it was fitted on; none and None if nothing can be fitted.
    """
    known = [] if data is None else data.cases.get(domain, [])
    volumes = {case["sha256"]: volume for case in known if (volume := mask_volume(case))}
    fitted = [case for case in known if case["split"] != "test" and case["sha256"] in volumes]
    measured = [row for row in rows if row["sha256"] in volumes]
    if not measured or len({case["label"] for case in fitted}) < 2:
        return [], None
    try:
        baseline = size_baseline([volumes[case["sha256"]] for case in fitted], [case["label"] for case in fitted])
    except ImportError:
        logger.warning('no size_only figures, which need scikit-learn; to have them, pip install "med3d-ext[tools]"')
        return [], None
    probabilities = baseline([volumes[row["sha256"]] for row in measured]).tolist()
    scored = [{"label": row["label"], "probability": p} for row, p in zip(measured, probabilities)]
    return scored, {"model": MODEL, "fitted_cases": len(fitted)}


def mask_volume(case: Mapping[str, Any]) -> float:
    """Volume (mm3) of a scanned case's mask; 0 without one."""
    voxels = sum(count for value, count in case["labels"].items() if int(value) > 0)
    return float(voxels * np.prod(case["spacing"]))


def _scores(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [row["label"] for row in rows], [row["probability"] for row in rows]
