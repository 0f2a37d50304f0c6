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
from jinja2 import Environment, PackageLoader
from scipy.stats import wilcoxon

from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.files import write_atomically, write_json
from med3d_ext.metrics.intervals import bootstrap_interval, describe_metric
from med3d_ext.metrics.segmentation import MEASURES, OUTCOMES, PENALTIES, ClassMeasures, global_dice, measure_class
from med3d_ext.tools.label_files import CasePairs, Merged, pair_cases, read_pair

logger = logging.getLogger("med3d_ext.evaluate")

Classes = dict[str, tuple[list[int], list[int]]]  # class name to its values in predictions and in labels
Run = dict[str, dict[str, ClassMeasures]]  # case name to class name to measures
COMPARED = ("dice", "surface_dice", "assd_mm", "hd95_mm")
# Two-sided, n differences of one sign have a probability of 2 / 2^n: 0.0625 for five, 0.031 for six.
PAIRS_FOR_SIGNIFICANCE = 6


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
    chosen = None if classes is None else parse_classes(classes)
    pairs = [pair_cases(each, label) for each in (pred, compare) if each is not None]
    faults = Faults(skip_bad)
    runs = [_measure(each, chosen, tolerances, faults) for each in pairs]
    if not runs[0]:
        raise FaultyCases(faults.sentences, len(pairs[0].files))
    faults.settle(sum(len(each.files) for each in pairs), logger)
    names = list(chosen or sorted({name for run in runs for case in run.values() for name in case}, key=int))
    if not names:
        raise InputError(f"'{pred}' and '{label}' contain only background; name the classes with --classes.")
    summary = {**_summary(runs[0], names, tolerances, pairs[0]), "left_out": faults.sentences}
    if compare is not None:
        summary["comparison"] = {"other": compare, **_comparison(runs[0], runs[1], names, tolerances)}
    if output is not None:
        for run, name in zip(runs, ("cases.csv", "cases_compare.csv")):
            _write_cases(Path(output) / name, run, names, tolerances)
        write_json(Path(output) / "summary.json", summary)
    templates = Environment(loader=PackageLoader("med3d_ext.tools"))
    templates.filters |= {
        "number": lambda value: f"{'-':>9}" if value is None else f"{value:9.4f}",
        "interval": lambda ends: f"{'-':>22}" if ends is None else f"[{ends[0]:9.4f}, {ends[1]:9.4f}]",
    }
    table = templates.get_template("evaluation.txt")
    return table.render(**summary, outcomes=OUTCOMES, width=max(map(len, names))).rstrip()


def parse_classes(text: str) -> Classes:
    """Class names and their values in predictions and labels: ``"1,2"``, ``"liver=1+2,tumor=2"`` or ``"liver=1:6"``."""
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
    """Tolerances (mm) as they are typed: ``"2"`` or ``"2,1,5"``; the first is the one of ``surface_dice``."""
    try:
        tolerances = [float(part) for part in str(text).strip("()[] ").split(",")]
    except ValueError:
        tolerances = [math.nan]
    if not all(math.isfinite(each) and each >= 0 for each in tolerances) or len(set(tolerances)) < len(tolerances):
        raise InputError(f"--tolerance_mm must be a number of at least 0 or several as '2,1,5', got '{text}'.")
    return tolerances


def _measure(pairs: CasePairs, classes: Classes | None, tolerances: Sequence[float], faults: Faults) -> Run:
    run: Run = {}
    for number, (case, (pred, label)) in enumerate(pairs.files.items(), 1):
        logger.info(f"{case} ({number}/{len(pairs.files)})")
        with faults.caught():
            prediction, truth, spacing = read_pair(pred, label)
            run[case] = {
                name: measure_class(
                    np.isin(prediction, ours), np.isin(truth, theirs), spacing.tolist(), tolerances[0], tolerances[1:]
                )
                for name, (ours, theirs) in (classes or _classes_of(prediction, truth, pairs.merged[case])).items()
            }
    for what, cases in (("label", pairs.unmatched_predictions), ("prediction", pairs.unmatched_labels)):
        if cases:
            logger.warning(f"Not counted, without a {what}: {', '.join(cases)}.")
    return run


def _classes_of(prediction: np.ndarray, truth: np.ndarray, merged: Merged) -> Classes:
    """Every value that occurs is a class, but for those that the prediction or the list of labels merges."""
    ours, theirs = ({value for pair in merged.values() for value in pair[side]} for side in (0, 1))
    present = ({*np.unique(prediction).tolist()} - ours) | ({*np.unique(truth).tolist()} - theirs)
    classes = {**{value: ([value], [value]) for value in present}, **merged}
    return {str(value): classes[value] for value in sorted(classes.keys() - {0})}


def _of_class(run: Run, name: str) -> dict[str, ClassMeasures]:
    """A class's measures in every case; a case where no file has its value is empty."""
    return {case: measures.get(name, ClassMeasures()) for case, measures in run.items()}


def _values(case: ClassMeasures, tolerances: Sequence[float]) -> dict[str, float]:
    """The measures of a case by name, with ``surface_dice_5mm`` for a further tolerance of 5 mm."""
    further = case.surface_dice_further or [math.nan] * len(tolerances[1:])
    names = [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances[1:]]
    return {**{measure: getattr(case, measure) for measure in MEASURES}, **dict(zip(names, further))}


def _summary(run: Run, names: list[str], tolerances: Sequence[float], pairs: CasePairs) -> dict[str, Any]:
    """What ``summary.json`` holds: per class n, mean and interval of each measure, global Dice and outcomes."""
    merges = {value: theirs for merged in pairs.merged.values() for value, (_, theirs) in merged.items()}
    classes = {}
    for name in names:
        cases = [*_of_class(run, name).values()]
        values = [_values(case, tolerances) for case in cases]
        classes[name] = {
            **{outcome: sum(case.outcome == outcome for case in cases) for outcome in OUTCOMES},
            "global_dice": global_dice(cases),
            **{measure: describe_metric([each[measure] for each in values]) for measure in values[0]},
        }
    return {
        "n": len(run),
        "tolerance_mm": tolerances[0],
        "further_tolerances_mm": list(tolerances[1:]),
        "penalties": PENALTIES,
        "unmatched_predictions": pairs.unmatched_predictions,
        "unmatched_labels": pairs.unmatched_labels,
        "merged_label_values": {str(value): each for value, each in sorted(merges.items()) if each != [value]},
        "classes": classes,
    }


def _comparison(run: Run, other: Run, names: list[str], tolerances: Sequence[float]) -> dict[str, Any]:
    """Paired test per class and measure over the cases of both runs; a difference is ``run - other``."""
    shared = [case for case in run if case in other]
    if not shared:
        raise InputError("--compare shares no case with PRED; give two runs on the same cases.")
    further = [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances[1:]]
    tests: dict[str, Any] = {}
    for name in names:
        both = [[_values(_of_class(each, name)[case], tolerances) for case in shared] for each in (run, other)]
        tests[name] = {
            measure: paired_test(*([each[measure] for each in values] for values in both))
            for measure in (*COMPARED, *further)
        }
    return {"n": len(shared), "in_one_run_only": sorted(run.keys() ^ other.keys()), "classes": tests}


def paired_test(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Two runs on the same cases: Wilcoxon's signed-rank test and the mean difference ``values - others``.

    Returns:
        ``n`` pairs with both values, ``excluded`` pairs with one value only, ``differing`` pairs (equal ones say
        nothing to the test), ``mean_difference``, its bootstrap ``interval_95`` (None below two pairs), ``p_value``
        (two-sided; 1 where no pair differs, None without pairs) and ``note``, which says when the test cannot reach
        0.05.
    """
    if len(values) != len(others):
        raise ValueError(f"others must hold {len(values)} values, got {len(others)}.")
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    both = np.isfinite(first) & np.isfinite(second)
    differences = first[both] - second[both]
    differing = differences[differences != 0]
    few = len(differing) < PAIRS_FOR_SIGNIFICANCE
    p_value = (float(wilcoxon(differing).pvalue) if len(differing) else 1.0) if len(differences) else None
    return {
        "n": len(differences),
        "excluded": int((np.isfinite(first) ^ np.isfinite(second)).sum()),
        "differing": len(differing),
        "mean_difference": float(differences.mean()) if len(differences) else None,
        "interval_95": list(bootstrap_interval(differences.tolist())) if len(differences) > 1 else None,
        "p_value": p_value,
        "note": f"{len(differing)} differing pairs: fewer than 6 cannot reach p < 0.05" if few else None,
    }


def _write_cases(path: Path, run: Run, names: list[str], tolerances: Sequence[float]) -> None:
    rows = [
        {"case": case, "class": name, **asdict(one), **_values(one, tolerances)}
        for name in names
        for case, one in _of_class(run, name).items()
    ]
    columns = [column for column in rows[0] if column != "surface_dice_further"]
    with write_atomically(path, "w") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
