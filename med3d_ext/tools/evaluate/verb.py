"""The verb ``evaluate``: label maps on disk against the truth, case by case and class by class."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.files import write_atomically, write_json
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.metrics.segmentation import MEASURES, OUTCOMES, PENALTIES, ClassMeasures, global_dice, measure_class
from med3d_ext.tools.evaluate.label_files import CasePairs, Merged, pair_cases, read_pair
from med3d_ext.tools.evaluate.paired import paired_test
from med3d_ext.tools.evaluate.table import evaluation_table

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
    tolerance_mm: str = "2",
    classes: str | None = None,
    skip_bad: bool = False,
) -> str:
    """Measure predicted label maps: Dice, surface Dice, ASSD, HD95 and volume error per class, with intervals.

    Files are matched by case name: case_1_seg.nii.gz belongs to case_1.nii.gz. Cases without a partner are listed and
    not counted.

    Args:
        pred: a label map or a folder of them.
        label: the true label map, a folder of them, or a list of cases in the Decathlon's format.
        output: folder for `cases.csv` and `summary.json`. Defaults to none.
        compare: label maps of another run on the same cases, for a paired test.
        tolerance_mm: distance (mm) within which a surface counts as correct for the surface Dice; several as `2,1,5`.
        classes: classes to measure, as `1,2` or `liver=1+2,tumor=2`; `liver=1:6` if the prediction's 1 is the
            label's 6. Defaults to every value that occurs; values that were one class in the training of the
            prediction's weights, or that have one name in the list of cases, count as one.
        skip_bad: if a pair is faulty, measure the other cases and list what was left out.
    """
    tolerances = parse_tolerances(tolerance_mm)
    chosen = parse_classes(classes) if classes is not None else None
    pairs = pair_cases(pred, label)
    other_pairs = pair_cases(compare, label) if compare is not None else None
    faults = Faults(skip_bad)
    run = _measure(pairs, chosen, tolerances, faults)
    other = _measure(other_pairs, chosen, tolerances, faults) if other_pairs is not None else {}
    if not run:
        raise FaultyCases(faults.sentences, len(pairs.files))
    faults.settle(len(pairs.files) + len(other_pairs.files if other_pairs is not None else ()), logger)
    names = list(chosen or sorted({name for case in [*run.values(), *other.values()] for name in case}, key=int))
    if not names:
        raise InputError(f"'{pred}' and '{label}' contain only background; name the classes with --classes.")
    summary = {**summarize_run(run, names, tolerances, pairs), "left_out": faults.sentences}
    if compare is not None:
        summary["comparison"] = {"other": compare, **compare_runs(run, other, names, tolerances)}
    if output is not None:
        _write_cases(Path(output) / "cases.csv", run, names, tolerances)
        if compare is not None:
            _write_cases(Path(output) / "cases_compare.csv", other, names, tolerances)
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


def parse_tolerances(text: str) -> list[float]:
    """Tolerances (mm) as they are typed: ``"2"`` or ``"2,1,5"``; the first is the one of ``surface_dice``.

    Raises:
        InputError: when one is no number of at least 0, or stands there twice.
    """
    try:
        tolerances = [float(part) for part in str(text).strip("()[] ").split(",")]
    except ValueError:
        tolerances = [math.nan]
    if not all(math.isfinite(each) and each >= 0 for each in tolerances) or len(set(tolerances)) < len(tolerances):
        raise InputError(f"--tolerance_mm must be a number of at least 0 or several as '2,1,5', got '{text}'.")
    return tolerances


def values_of(case: ClassMeasures, tolerances: Sequence[float]) -> dict[str, float]:
    """The measures of a case by name, with ``surface_dice_5mm`` for a further tolerance of 5 mm."""
    further = case.surface_dice_further or [math.nan] * len(tolerances[1:])
    names = [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances[1:]]
    return {**{measure: getattr(case, measure) for measure in MEASURES}, **dict(zip(names, further))}


def _measure(pairs: CasePairs, classes: Classes | None, tolerances: Sequence[float], faults: Faults) -> Run:
    run: Run = {}
    for number, (case, (pred, label)) in enumerate(pairs.files.items(), 1):
        logger.info(f"{case} ({number}/{len(pairs.files)})")
        with faults.caught():
            prediction, truth, spacing = read_pair(pred, label)
            chosen = classes or _classes_of(prediction, truth, pairs.merged.get(case, {}))
            run[case] = {
                name: measure_class(
                    np.isin(prediction, ours), np.isin(truth, theirs), spacing.tolist(), tolerances[0], tolerances[1:]
                )
                for name, (ours, theirs) in chosen.items()
            }
    for what, cases in (("label", pairs.unmatched_predictions), ("prediction", pairs.unmatched_labels)):
        if cases:
            logger.warning(f"Not counted, without a {what}: {', '.join(cases)}.")
    return run


def _classes_of(prediction: np.ndarray, truth: np.ndarray, merged: Merged) -> Classes:
    """Every value that occurs is a class, but for those that the prediction or the list of labels merges."""
    ours, theirs = ({value for pair in merged.values() for value in pair[side]} for side in (0, 1))
    present = ({*np.unique(prediction).tolist()} - ours) | ({*np.unique(truth).tolist()} - theirs)
    classes = {**merged, **{value: ([value], [value]) for value in present - merged.keys()}}
    return {str(value): classes[value] for value in sorted(classes.keys() - {0})}


def _of_class(run: Run, name: str) -> dict[str, ClassMeasures]:
    """A class's measures in every case; a case where no file has its value is empty."""
    return {case: measures.get(name, ClassMeasures()) for case, measures in run.items()}


def summarize_run(run: Run, names: list[str], tolerances: Sequence[float], pairs: CasePairs) -> dict[str, Any]:
    """What ``summary.json`` holds: per class n, mean and interval of each measure, global Dice and outcomes."""
    return {
        "n": len(run),
        "tolerance_mm": tolerances[0],
        "further_tolerances_mm": list(tolerances[1:]),
        "penalties": PENALTIES,
        "unmatched_predictions": pairs.unmatched_predictions,
        "unmatched_labels": pairs.unmatched_labels,
        "merged_label_values": _merges(pairs),
        "classes": {name: _summarize_class(list(_of_class(run, name).values()), tolerances) for name in names},
    }


def _merges(pairs: CasePairs) -> dict[str, list[int]]:
    """Values of the labels that count as one class without ``--classes``."""
    found = {value: theirs for merged in pairs.merged.values() for value, (_, theirs) in merged.items()}
    return {str(value): theirs for value, theirs in sorted(found.items()) if theirs != [value]}


def _summarize_class(cases: list[ClassMeasures], tolerances: Sequence[float]) -> dict[str, Any]:
    values = [values_of(case, tolerances) for case in cases]
    described = {measure: describe_metric([each[measure] for each in values]) for measure in values[0]}
    counts = {outcome: sum(case.outcome == outcome for case in cases) for outcome in OUTCOMES}
    return {**counts, "global_dice": global_dice(cases), **described}


def compare_runs(run: Run, other: Run, names: list[str], tolerances: Sequence[float] = (2.0,)) -> dict[str, Any]:
    """Paired test per class and measure over the cases of both runs; a difference is ``run - other``."""
    shared = [case for case in run if case in other]
    if not shared:
        raise InputError("--compare shares no case with PRED; give two runs on the same cases.")
    tests: dict[str, Any] = {}
    for name in names:
        ours, theirs = (
            [values_of(_of_class(each, name)[case], tolerances) for case in shared] for each in (run, other)
        )
        compared = [*COMPARED, *(measure for measure in ours[0] if measure not in MEASURES)]
        tests[name] = {
            measure: paired_test([each[measure] for each in ours], [each[measure] for each in theirs])
            for measure in compared
        }
    return {"n": len(shared), "in_one_run_only": sorted(run.keys() ^ other.keys()), "classes": tests}


def _write_cases(path: Path, run: Run, names: list[str], tolerances: Sequence[float]) -> None:
    rows = [
        {"case": case, "class": name, **asdict(one), **values_of(one, tolerances)}
        for name in names
        for case, one in _of_class(run, name).items()
    ]
    columns = [column for column in rows[0] if column != "surface_dice_further"]
    with write_atomically(path, "w") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
