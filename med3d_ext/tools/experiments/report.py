"""What an experiment leaves to read: a comparison's table, curves and overlays (figures 5, 6 and 1), a study's plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from med3d_ext.io.files import write_atomically
from med3d_ext.tools.experiments.figures import Curve, is_small_good
from med3d_ext.tools.experiments.results import ArmResult

Panel = tuple[str, str, Mapping[str, Curve], Mapping[str, Any]]
"""Title, axis label, curves, and what :func:`~med3d_ext.tools.experiments.figures.iterations_to_reach` says of them."""


def share_words(share: float | None) -> str:
    """What a share of the training cases is called."""
    return "all training cases" if share is None else f"{share:.0%} of the training cases"


def comparison_table(record: Mapping[str, Any]) -> str:
    """The page of a ``comparison.json``, in Markdown."""
    state = "" if record["complete"] else " (unfinished: of the seeds so far)"
    lines = [f"# Comparison: {record['bundle']}{state}", "", f"`{record['command']}`", "", *_facts(record)]
    for entry in record["results"]:
        which = " (lower is better)" if is_small_good(entry["metric"]) else ""
        lines += ["", f"## {_place(entry)}: {entry['metric']}{which}", "", *_results(entry, record["starts"])]
    lines += ["", "## Iterations to reach the final level of training from scratch", "", *_reach(record)]
    return "\n".join(lines) + "\n"


def _facts(record: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, record["seeds"]))
    lines = [
        f"- Data: {record['data']['name']}; seeds {seeds}, each arm with each of them. A case's value is its mean over "
        "the seeds: n is the number of test cases."
    ]
    for one in record["budgets"]:
        epochs = f"{one['epochs']} epoch{'s' * (one['epochs'] != 1)}"
        lines.append(
            f"- {_place(one)}: every arm made {one['iterations']} iterations ({epochs}) on {one['training_cases']} "
            "training cases."
        )
    for name, facts in record["starts"].items():
        if "weights" in facts:
            cases = facts["seen_test_cases"]
            seen = f"has seen {len(cases) if cases else 'none'} of the test cases"
            unknown = "no card.json next to it: whether it has seen test cases is unknown"
            lines.append(f"- {name}: {facts['weights']}, {unknown if cases is None else seen}.")
    if record["excluded_test_cases"]:
        lines.append(f"- Not counted in any arm, seen in pretraining: {', '.join(record['excluded_test_cases'])}.")
    return [*lines, "- Intervals are 95 % bootstrap intervals over cases; p-values are two-sided, not corrected."]


def _place(entry: Mapping[str, Any]) -> str:
    words = share_words(entry["share"])
    fold = "" if entry.get("fold") is None else f", fold {entry['fold']}"
    return f"{words[0].upper()}{words[1:]}{fold}" + (f", {entry['domain']}" if "domain" in entry else "")


def _results(entry: Mapping[str, Any], starts: Mapping[str, Any]) -> list[str]:
    reference, rows, remarks = entry["reference"], [], set()
    header = ["arm", "learning rate", "n", f"{entry['metric']} [95 %]", f"minus {reference} [95 %]", "p", "seeds"]
    for name, figures in entry["arms"].items():
        difference, p_value = "reference", ""
        test = figures.get("against_reference")
        if test is not None:
            difference = _interval(test["mean_difference"], test["interval_95"], "+")
            p = test["p_value"]
            p_value = "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
            remarks |= {(0, f"test: {test['test']}"), (1, test["note"])}
        seeds = " ".join(_number(value, 3) for value in figures["per_seed"].values())
        value = _interval(figures["mean"], figures["interval_95"])
        rows.append([name, f"{starts[name]['learning_rate']:g}", figures["n"], value, difference, p_value, seeds])
    remark = "; ".join(text for _, text in sorted((rank, text) for rank, text in remarks if text))
    return [*_table(header, rows), *(["", f"{remark}."] if remark else [])]


def _reach(record: Mapping[str, Any]) -> Iterable[str]:
    def words(value: float | None, ends: Sequence[float | None] | None) -> str:
        never = value is None and set(ends or [None]) == {None}
        numbers = ["never" if one is None else f"{one:g}" for one in (value, *(ends or []))]
        return numbers[0] if never or ends is None else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"

    columns = "iteration [95 %]", "of", "times faster [95 %]", "each seed alone"
    header, rows = ["training cases", "quantity", "level", "arm", *columns], []
    for entry in record["iterations_to_reach"]:
        share = "all" if entry["share"] is None else f"{entry['share']:.0%}"
        for name, arm in entry["arms"].items():
            iteration = words(arm["iteration"], arm["iteration_95"])
            seeds = " ".join(words(value, None) for value in arm["per_seed"].values())
            faster = "" if arm["times_faster"] is None else words(arm["times_faster"], arm["times_faster_95"])
            level = f"{_number(entry['level'], 4)} ({entry['reference']})"
            rows.append([share, entry["quantity"], level, name, iteration, f"{arm['of']:g}", faster, seeds])
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _interval(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    ends = "" if interval is None else f" [{', '.join(_number(end, 3, sign) for end in interval)}]"
    return _number(value, 3, sign) + ends


def draw_curves(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw a row of panels per share: means over the seeds, bands from the lowest to the highest seed."""
    columns = max(map(len, rows))
    figure = _figure(6.5 * columns, 4.5 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (title, label, curves, reach) in zip(grid.flat, (panel for row in rows for panel in row)):
        for name, curve in curves.items():
            seeds = f"{len(curve.seeds)} seed{'s' * (len(curve.seeds) > 1)}"
            marker = "." if len(curve.iterations) < 50 else None
            (line,) = axes.plot(curve.iterations, curve.mean, marker=marker, label=f"{name} ({seeds})")
            if len(curve.seeds) > 1:
                low, high = curve.per_seed.min(axis=0), curve.per_seed.max(axis=0)
                axes.fill_between(curve.iterations, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if reach["level"] is not None:
            axes.axhline(reach["level"], color="gray", linestyle=":", label=f"end of {reach['reference']}")
        axes.set(title=title, xlabel="iteration", ylabel=label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _save(figure, path)


def draw_overlays(path: Path, results: Sequence[ArmResult]) -> bool:
    """Draw one validation case at the same epochs of all arms: a column per arm, a row per epoch.

    Args:
        path: the PNG to write.
        results: one result per arm, all of one share, fold and seed.

    Returns:
        whether all arms have snapshots of the same case; else nothing is drawn.
    """
    shots = {result.facts["start"]: _snapshots(result.folder / "snapshots") for result in results}
    epochs = sorted(set.intersection(*(set(found) for found in shots.values())))
    if not epochs or len({str(shot["case"]) for found in shots.values() for shot in found.values()}) != 1:
        return False
    first = next(iter(shots.values()))[epochs[0]]
    height = 3 * first["image"].shape[0] * float(first["aspect"]) / first["image"].shape[1]
    figure = _figure(3 * len(shots), (height + 0.2) * len(epochs) + 0.6)
    grid = figure.subplots(len(epochs), len(shots), squeeze=False)
    for row, epoch in zip(grid, epochs):
        for axes, (name, found) in zip(row, shots.items()):
            _draw_slice(axes, found[epoch])
            axes.set_title(f"{name}, epoch {epoch}", fontsize="small")
    where = f"validation case {first['case']}, seed {results[0].facts['seed']}"
    figure.suptitle(f"{where}: prediction red, label green", fontsize="small")
    _save(figure, path)
    return True


def _snapshots(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Epoch to arrays."""
    found = {}
    for path in sorted(folder.glob("epoch_*.npz")):
        with np.load(path, allow_pickle=False) as content:
            found[int(path.stem.rpartition("_")[2])] = {key: content[key] for key in content.files}
    return found


def _draw_slice(axes: Any, shot: Mapping[str, np.ndarray]) -> None:
    image = shot["image"].astype(np.float32)
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", origin="lower", aspect=float(shot["aspect"]), vmin=low, vmax=high)
    for key, color in (("label", "lime"), ("prediction", "red")):
        for value in np.unique(shot[key])[1:] if (shot[key] == 0).any() else np.unique(shot[key]):
            mask = shot[key] == value
            if not mask.all():
                axes.contour(mask, levels=[0.5], colors=color, linewidths=1)
    axes.set_axis_off()


def draw_study(record: Mapping[str, Any], metric: str, path: Path) -> None:
    """Draw a metric over the study's values: a line per domain through the means of the seeds, a point per row."""
    places = {value_words(value): number for number, value in enumerate(record["values"])}
    rows = [(row["organ"], places[value_words(row["value"])], row.get(metric, {})) for row in record["rows"]]
    found = [(organ, place, figure.get("mean"), figure.get("n")) for organ, place, figure in rows]
    points = pd.DataFrame(found, columns=["organ", "place", "mean", "n"]).dropna()
    figure = _figure(8, 5)
    axes = figure.add_subplot(xlabel=record["option"], ylabel=metric, title=f"study {record['study']}")
    for organ, drawn in points.groupby("organ", sort=False):
        means = drawn.groupby("place")["mean"].mean()
        (line,) = axes.plot(means.index, means, label=f"{organ} (n={drawn['n'].iloc[-1]:.0f})")
        axes.plot(drawn["place"], drawn["mean"], ".", color=line.get_color())
    axes.set_xticks(list(places.values()), list(places))
    axes.grid(alpha=0.3)
    if len(points):
        axes.legend(fontsize="small")
    _save(figure, path)


def value_words(value: Any) -> str:
    """A value of a study's option as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(width: float, height: float) -> Any:
    # Not pyplot: its state and its choice of a screen belong to the caller.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
