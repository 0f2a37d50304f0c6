"""A comparison's figures as a page to read: ``table.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from med3d_ext.tools.experiments.figures import is_small_good


def comparison_table(record: Mapping[str, Any]) -> str:
    """The page of a ``comparison.json``."""
    state = "" if record["complete"] else " (unfinished: of the seeds so far)"
    lines = [f"# Comparison: {record['bundle']}{state}", "", f"`{record['command']}`", "", *_facts(record)]
    for entry in record["results"]:
        which = " (lower is better)" if is_small_good(entry["metric"]) else ""
        lines += ["", f"## {_place(entry)}: {entry['metric']}{which}", "", *_results(entry, record["starts"])]
    lines += ["", "## Iterations to reach what training from scratch ends at", "", *_reach(record)]
    return "\n".join(lines) + "\n"


def _facts(record: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, record["seeds"]))
    lines = [f"- Data: {record['data']['name']}; seeds {seeds}, each arm with each of them. A case's value is its mean "
             "over the seeds: n is the number of test cases."]  # fmt: skip
    for one in record["budgets"]:
        where = _place(one)
        lines.append(
            f"- {where}: every arm made {one['iterations']} iterations ({_count(one['epochs'], 'epoch')}) on "
            f"{one['training_cases']} training cases."
        )
    for name, facts in record["starts"].items():
        if "weights" in facts:
            lines.append(f"- {name}: {facts['weights']}, {_seen(facts['seen_test_cases'])}.")
    if record["excluded_test_cases"]:
        lines.append(f"- Not counted in any arm, seen in pretraining: {', '.join(record['excluded_test_cases'])}.")
    return [*lines, "- Intervals are 95 % bootstrap intervals over cases; p-values are two-sided, not corrected."]


def _seen(cases: Sequence[str] | None) -> str:
    if cases is None:
        return "no card.json beside it: whether it has seen test cases is unknown"
    return f"has seen {len(cases)} of the test cases" if cases else "has seen none of the test cases"


def _place(entry: Mapping[str, Any]) -> str:
    share = "all training cases" if entry["share"] is None else f"{entry['share']:.0%} of the training cases"
    fold = "" if entry.get("fold") is None else f", fold {entry['fold']}"
    domain = f", {entry['domain']}" if "domain" in entry else ""
    return f"{share}{fold}{domain}".capitalize() if not domain else f"{share[0].upper()}{share[1:]}{fold}{domain}"


def _results(entry: Mapping[str, Any], starts: Mapping[str, Any]) -> list[str]:
    reference = entry["reference"]
    header = ["arm", "learning rate", "n", f"{entry['metric']} [95 %]", f"minus {reference} [95 %]", "p", "seeds"]
    rows = []
    for name, figures in entry["arms"].items():
        test = figures.get("against_reference")
        seeds = " ".join(_number(value, 3) for value in figures["per_seed"].values())
        difference = "reference" if test is None else _interval(test["mean_difference"], test["interval_95"], "+")
        p_value = "" if test is None else _p(test)
        value = _interval(figures["mean"], figures["interval_95"])
        rows.append([name, f"{starts[name]['learning_rate']:g}", figures["n"], value, difference, p_value, seeds])
    notes = {
        figures["against_reference"]["note"] for figures in entry["arms"].values() if "against_reference" in figures
    }
    tests = {
        figures["against_reference"]["test"] for figures in entry["arms"].values() if "against_reference" in figures
    }
    remark = "; ".join([*(f"test: {one}" for one in sorted(tests)), *sorted(note for note in notes if note)])
    return [*_table(header, rows), *(["", f"{remark}."] if remark else [])]


def _reach(record: Mapping[str, Any]) -> Iterable[str]:
    header = ["training cases", "quantity", "level", "arm", "iteration", "of", "times faster", "each seed alone"]
    rows = []
    for entry in record["iterations_to_reach"]:
        share = "all" if entry["share"] is None else f"{entry['share']:.0%}"
        for name, arm in entry["arms"].items():
            never = "never"
            iteration = never if arm["iteration"] is None else f"{arm['iteration']:g}"
            seeds = " ".join(never if value is None else f"{value:g}" for value in arm["per_seed"].values())
            faster = "" if arm["times_faster"] is None else f"{arm['times_faster']:g}"
            level = f"{_number(entry['level'], 4)} ({entry['reference']})"
            rows.append([share, entry["quantity"], level, name, iteration, f"{arm['of']:g}", faster, seeds])
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _interval(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    ends = "" if interval is None else f" [{', '.join(_number(end, 3, sign) for end in interval)}]"
    return _number(value, 3, sign) + ends


def _p(test: Mapping[str, Any]) -> str:
    if test["p_value"] is None:
        return "-"
    return "< 0.001" if test["p_value"] < 0.001 else f"{test['p_value']:.3f}"
