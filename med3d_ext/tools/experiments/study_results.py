"""What a study leaves behind: a row per arm and domain, with n and interval, and a plot of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.prepare import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.run.provenance import command_line, git_state, versions
from med3d_ext.tools.experiments.arms import Arm


def study_record(
    name: str, option: str, values: Sequence[Any], seeds: Sequence[int], data: PreparedData
) -> dict[str, Any]:
    """All of a study's JSON except settings and rows: where the figures come from."""
    test = {domain: {"n": len(cases), "identity": identity(cases)} for domain, cases in test_cases(data).items()}
    return {
        "study": name,
        "option": option,
        **command_line(),
        "values": list(values),
        "seeds": list(seeds),
        "versions": versions(),
        "git": git_state(),
        "data": {"name": data.folder.resolve().name, "identity": data.identity, "test": test},
    }


def arm_rows(arm: Arm, data: PreparedData) -> list[dict[str, Any]]:
    """One row per domain of a finished arm: value, seed, domain, training cases, metrics, epochs, seconds.

    ``seconds`` is the time of the training since its last start; ``starts`` counts them.

    Raises:
        InputError: when the arm was not evaluated on the study's test cases.
    """
    check_split(arm, data)
    _check_evaluated(arm, data)
    run, card = read_json(arm.run), read_json(arm.folder / "models" / "card.json")
    facts = {
        "epochs": run["epochs"],
        "seconds": run["duration_seconds"],
        "starts": 1 + len(run["earlier"]),
        "device": run["device"],
    }
    rows = []
    for domain, metrics in read_json(arm.summary)["domains"].items():
        figures = {name: {key: each[key] for key in ("n", "mean", "interval_95")} for name, each in metrics.items()}
        cases = sum(case["domain"] == domain for case in card["cases"]["training"])
        organ = data.fingerprint["domains"][domain].get("organ", domain)
        place = {**arm.facts, "domain": domain, "organ": organ}
        rows.append({**place, "training_cases": cases, **figures, **facts})
    return rows


def test_cases(data: PreparedData) -> dict[str, list[str]]:
    """SHA-256 of each domain's test cases."""
    cases: dict[str, list[str]] = defaultdict(list)
    for item in data.items("test"):
        cases[item["domain"]].append(item["sha256"])
    return dict(cases)


test_cases.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take it for one


def identity(hashes: Sequence[str]) -> str:
    """A short digest of a set of cases."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()[:16]


def check_split(arm: Arm, data: PreparedData) -> None:
    """Each domain of an arm has the test cases of the experiment.

    Raises:
        InputError: when they are others.
    """
    wanted = test_cases(data)
    path = arm.folder / "models" / "fingerprint.json"
    for name, domain in read_json(path)["domains"].items():
        found = [case["sha256"] for case in domain["cases"] if case["split"] == "test"]
        if sorted(found) != sorted(wanted.get(name, [])):
            raise InputError(
                f"'{path}' has other test cases of {name} than the experiment's data; remove '{arm.folder}'."
            )


def _check_evaluated(arm: Arm, data: PreparedData) -> None:
    """All test cases of each domain of an arm were evaluated."""
    wanted = test_cases(data)
    evaluated = read_json(arm.summary)["domains"]
    for name in read_json(arm.folder / "models" / "fingerprint.json")["domains"]:
        expected = len(wanted.get(name, []))
        counts = [each["n"] + each["undefined"] for each in evaluated.get(name, {}).values()]
        if any(count != expected for count in counts) or bool(counts) != bool(expected):
            raise InputError(f"'{arm.summary}' lacks test cases of {name}; remove it and run the study again.")


def draw_study(record: Mapping[str, Any], metric: str, path: Path) -> None:
    """Draw a metric over the study's values: a line per domain through the means of the seeds, a point per row."""
    # Not pyplot: its state and its choice of a screen belong to the caller.
    from matplotlib.figure import Figure

    places = {_words(value): number for number, value in enumerate(record["values"])}
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    counts: dict[str, int] = {}
    for row in record["rows"]:
        figure = row.get(metric, {})
        if figure.get("mean") is not None:
            points[row["organ"]].append((places[_words(row["value"])], figure["mean"]))
            counts[row["organ"]] = figure["n"]
    picture = Figure(figsize=(8, 5), layout="constrained")
    axes = picture.add_subplot(xlabel=record["option"], ylabel=metric, title=f"study {record['study']}")
    for organ, found in points.items():
        xs = sorted({x for x, _ in found})
        means = [_mean([y for at, y in found if at == x]) for x in xs]
        (line,) = axes.plot(xs, means, label=f"{organ} (n={counts[organ]})")
        axes.plot([x for x, _ in found], [y for _, y in found], ".", color=line.get_color())
    axes.set_xticks(list(places.values()), list(places))
    axes.grid(alpha=0.3)
    if points:
        axes.legend(fontsize="small")
    with write_atomically(path) as file:
        picture.savefig(file, format="png", dpi=100)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
