"""What ``evaluate`` prints: its summary as a table."""

from __future__ import annotations

from typing import Any

from med3d_ext.metrics.segmentation import MEASURES, OUTCOMES, PENALTIES


def evaluation_table(summary: dict[str, Any]) -> str:
    """The table of a summary as :func:`med3d_ext.tools.evaluate.verb.summarize_run` makes it."""
    width = max(len(name) for name in summary["classes"])
    lines = [f"{summary['n']} cases; surface Dice at {summary['tolerance_mm']:g} mm; {PENALTIES}"]
    for name, facts in summary["classes"].items():
        counts = ", ".join(f"{facts[outcome]} {outcome.replace('_', ' ')}" for outcome in OUTCOMES)
        lines += ["", f"{name:<{width}}  {counts}", f"  {'global_dice':<21}  {_number(facts['global_dice'])}"]
        for measure in (key for key in facts if key in MEASURES or key.startswith("surface_dice_")):
            one = facts[measure]
            lines.append(f"  {measure:<21}  {_number(one['mean'])}  {_interval(one['interval_95'])}  n={one['n']}")
    for value, merged in summary.get("merged_label_values", {}).items():
        lines += ["", f"values {', '.join(map(str, merged))} of the labels count as {value}, as in the training"]
    for what in ("unmatched_predictions", "unmatched_labels"):
        if summary[what]:
            lines += ["", f"{what.replace('_', ' ')}, not counted: {', '.join(summary[what])}"]
    if summary.get("left_out"):
        lines += ["", "faulty, not counted:", *(f"  {sentence}" for sentence in summary["left_out"])]
    return "\n".join(lines + _comparison_lines(summary.get("comparison")))


def _comparison_lines(comparison: dict[str, Any] | None) -> list[str]:
    if comparison is None:
        return []
    lines = ["", f"minus {comparison['other']}, {comparison['n']} common cases"]
    if comparison["in_one_run_only"]:
        lines.append(f"in one run only, not compared: {', '.join(comparison['in_one_run_only'])}")
    for name, tests in comparison["classes"].items():
        lines.append(name)
        for measure, test in tests.items():
            note = f"  ({test['note']})" if test["note"] else ""
            excluded = f", {test['excluded']} excluded" if test["excluded"] else ""
            lines.append(
                f"  {measure:<21}  {_number(test['mean_difference'])}  {_interval(test['interval_95'])}"
                f"  n={test['n']}{excluded}  Wilcoxon p={_number(test['p_value']).strip()}{note}"
            )
    return lines


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.4f}"


def _interval(interval: list[float] | None) -> str:
    return f"{'-':>22}" if interval is None else f"[{interval[0]:9.4f}, {interval[1]:9.4f}]"
