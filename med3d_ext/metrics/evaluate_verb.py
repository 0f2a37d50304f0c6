"""The verb ``evaluate``: label maps on disk against the truth, case by case and class by class."""

from __future__ import annotations

import csv
import logging
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.files import write_atomically, write_json
from med3d_ext.metrics.evaluation_table import evaluation_table
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.metrics.label_files import CasePairs, pair_cases, read_pair
from med3d_ext.metrics.paired import paired_test
from med3d_ext.metrics.segmentation import MEASURES, OUTCOMES, PENALTIES, ClassMeasures, global_dice, measure_class

logger = logging.getLogger("med3d_ext.evaluate")

Classes = dict[str, tuple[list[int], list[int]]]  # class name to its values in predictions and in labels
Run = dict[str, dict[str, ClassMeasures]]  # case name to class name to measures
COMPARED = ("dice", "surface_dice", "assd_mm", "hd95_mm")


def evaluate(
    pred: str,
    label: str,
    *,
    output: str | None = None,
    compare: str | None = None,
    tolerance_mm: float = 2.0,
    classes: str | None = None,
) -> str:
    """Measure predicted label maps: Dice, surface Dice, ASSD, HD95 and volume error per class, with intervals.

    Files are matched by case name: case_1_seg.nii.gz belongs to case_1.nii.gz. Cases without partner are named and
    not counted.

    Args:
        pred: a label map or a folder of them.
        label: the true label map, a folder of them, or a list of cases in the Decathlon's format.
        output: folder for `cases.csv` and `summary.json`. Defaults to none.
        compare: label maps of another run on the same cases, for a paired test.
        tolerance_mm: distance (mm) within which a surface counts as right for the surface Dice.
        classes: classes to measure, as `1,2` or `liver=1+2,tumor=2`; `liver=1:6` where the prediction's 1 is the
            label's 6. Defaults to every value that occurs.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"--tolerance_mm must be a number of at least 0, got {tolerance_mm}.")
    chosen = parse_classes(classes) if classes is not None else None
    pairs = pair_cases(pred, label)
    other_pairs = pair_cases(compare, label) if compare is not None else None
    run = _measure(pairs, chosen, tolerance_mm)
    other = _measure(other_pairs, chosen, tolerance_mm) if other_pairs is not None else {}
    names = list(chosen or sorted({name for case in [*run.values(), *other.values()] for name in case}, key=int))
    if not names:
        raise InputError(f"'{pred}' and '{label}' hold background only; name the classes with --classes.")
    summary = summarize_run(run, names, tolerance_mm, pairs)
    if compare is not None:
        summary["comparison"] = {"other": compare, **compare_runs(run, other, names)}
    if output is not None:
        _write_cases(Path(output) / "cases.csv", run, names)
        if compare is not None:
            _write_cases(Path(output) / "cases_compare.csv", other, names)
        write_json(Path(output) / "summary.json", summary)
    return evaluation_table(summary)


def parse_classes(text: str) -> Classes:
    """Class names and their values in predictions and labels: ``"1,2"``, ``"liver=1+2,tumor=2"`` or ``"liver=1:6"``.

    Raises:
        InputError: when the text has another form or names a class twice.
    """
    values = r"\d+(?:\+\d+)*"
    classes: Classes = {}
    for part in text.replace(" ", "").strip("()[]").split(","):
        match = re.fullmatch(rf"(?:([^=]+)=)?({values})(?::({values}))?", part)
        if match is None or (match[1] or match[2]) in classes:
            raise InputError(
                f"--classes must be like '1,2', 'liver=1+2,tumor=2' or 'liver=1:6', each name once, got '{text}'."
            )
        pred, label = ([int(value) for value in side.split("+")] for side in (match[2], match[3] or match[2]))
        classes[match[1] or match[2]] = pred, label
    return classes


def _measure(pairs: CasePairs, classes: Classes | None, tolerance_mm: float) -> Run:
    run: Run = {}
    for number, (case, (pred, label)) in enumerate(pairs.files.items(), 1):
        logger.info(f"{case} ({number}/{len(pairs.files)})")
        prediction, truth, spacing = read_pair(pred, label)
        present = sorted({*np.unique(prediction).tolist(), *np.unique(truth).tolist()} - {0})
        run[case] = {
            name: measure_class(np.isin(prediction, ours), np.isin(truth, theirs), spacing.tolist(), tolerance_mm)
            for name, (ours, theirs) in (classes or {str(value): ([value], [value]) for value in present}).items()
        }
    for what, cases in (("label", pairs.unmatched_predictions), ("prediction", pairs.unmatched_labels)):
        if cases:
            logger.warning(f"Not counted, without a {what}: {', '.join(cases)}.")
    return run


def _of_class(run: Run, name: str) -> dict[str, ClassMeasures]:
    """A class's measures in every case; a case where no file has its value is empty."""
    return {case: measures.get(name, ClassMeasures()) for case, measures in run.items()}


def summarize_run(run: Run, names: list[str], tolerance_mm: float, pairs: CasePairs) -> dict[str, Any]:
    """What ``summary.json`` holds: per class n, mean and interval of each measure, global Dice and outcomes."""
    return {
        "n": len(run),
        "tolerance_mm": tolerance_mm,
        "penalties": PENALTIES,
        "unmatched_predictions": pairs.unmatched_predictions,
        "unmatched_labels": pairs.unmatched_labels,
        "classes": {name: _summarize_class(list(_of_class(run, name).values())) for name in names},
    }


def _summarize_class(cases: list[ClassMeasures]) -> dict[str, Any]:
    described = {measure: describe_metric([getattr(case, measure) for case in cases]) for measure in MEASURES}
    counts = {outcome: sum(case.outcome == outcome for case in cases) for outcome in OUTCOMES}
    return {**counts, "global_dice": global_dice(cases), **described}


def compare_runs(run: Run, other: Run, names: list[str]) -> dict[str, Any]:
    """Paired test per class and measure over the cases of both runs; a difference is ``run - other``."""
    shared = [case for case in run if case in other]
    if not shared:
        raise InputError("--compare shares no case with PRED; give two runs on the same cases.")
    tests: dict[str, Any] = {}
    for name in names:
        ours, theirs = _of_class(run, name), _of_class(other, name)
        tests[name] = {
            measure: paired_test(
                [getattr(ours[case], measure) for case in shared], [getattr(theirs[case], measure) for case in shared]
            )
            for measure in COMPARED
        }
    return {"n": len(shared), "in_one_run_only": sorted(run.keys() ^ other.keys()), "classes": tests}


def _write_cases(path: Path, run: Run, names: list[str]) -> None:
    with write_atomically(path, "w") as file:
        writer = csv.DictWriter(file, ["case", "class", *(field.name for field in fields(ClassMeasures))])
        writer.writeheader()
        for name in names:
            writer.writerows({"case": case, "class": name, **asdict(one)} for case, one in _of_class(run, name).items())
