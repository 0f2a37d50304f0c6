"""What an experiment leaves to read: a comparison's table, curves and overlays (figures 5, 6 and 1), a study's plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from med3d_ext.io.files import write_atomically
from med3d_ext.tools.experiments.engine import ArmResult
from med3d_ext.tools.experiments.figures import Curve, is_small_good

Panel = tuple[str, str, Mapping[str, Curve], Mapping[str, Any]]
"""Title, axis label, curves, and what :func:`~med3d_ext.tools.experiments.figures.iterations_to_reach` says of them."""


def share_words(share: float | None) -> str:
    """What a share of the training cases is called."""
    return "all training cases" if share is None else f"{share:.0%} of the training cases"


def comparison_table(record: Mapping[str, Any]) -> str:
    """The page of a ``comparison.json``, in Markdown."""
    templates = Environment(loader=PackageLoader("med3d_ext.tools"), keep_trailing_newline=True)
    templates.filters |= {
        "number": _number,
        "p_value": lambda p: "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "percent": "{:.0%}".format,
        "place": _place,
        "reached": _reached,
        "within": _within,
    }
    templates.tests["lower_better"] = is_small_good
    return templates.get_template("comparison.md").render(record)


def _place(entry: Mapping[str, Any]) -> str:
    words = share_words(entry["share"])
    fold = "" if entry.get("fold") is None else f", fold {entry['fold']}"
    return f"{words[0].upper()}{words[1:]}{fold}" + (f", {entry['domain']}" if "domain" in entry else "")


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _within(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    ends = "" if interval is None else f" [{', '.join(_number(end, 3, sign) for end in interval)}]"
    return _number(value, 3, sign) + ends


def _reached(value: float | None, ends: Sequence[float | None] | None = None) -> str:
    numbers = ["never" if one is None else f"{one:g}" for one in (value, *(ends or []))]
    return numbers[0] if {*numbers} == {"never"} or not ends else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


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

    ``results`` are one per arm, all of one share, fold and seed. Returns whether all have snapshots of the same case;
    else nothing is drawn.
    """
    shots: dict[str, dict[int, dict[str, np.ndarray]]] = {}  # by arm and epoch
    for result in results:
        found = shots.setdefault(result.facts["start"], {})
        for file in sorted((result.folder / "snapshots").glob("epoch_*.npz")):
            with np.load(file, allow_pickle=False) as content:
                found[int(file.stem.rpartition("_")[2])] = dict(content)
    epochs = sorted(set.intersection(*map(set, shots.values())))
    if not epochs or len({str(shot["case"]) for found in shots.values() for shot in found.values()}) != 1:
        return False
    first = next(iter(shots.values()))[epochs[0]]
    height = 3 * first["image"].shape[0] * float(first["aspect"]) / first["image"].shape[1]
    figure = _figure(3 * len(shots), (height + 0.2) * len(epochs) + 0.6)
    grid = figure.subplots(len(epochs), len(shots), squeeze=False)
    for row, epoch in zip(grid, epochs):
        for axes, (name, found) in zip(row, shots.items()):
            shot = found[epoch]
            image = shot["image"].astype(np.float32)
            low, high = np.percentile(image, (1, 99))
            axes.imshow(image, cmap="gray", origin="lower", aspect=float(shot["aspect"]), vmin=low, vmax=high)
            for key, color in (("label", "lime"), ("prediction", "red")):
                for value in np.unique(shot[key][shot[key] > 0]):
                    if not (shot[key] == value).all():
                        axes.contour(shot[key] == value, levels=[0.5], colors=color, linewidths=1)
            axes.set_axis_off()
            axes.set_title(f"{name}, epoch {epoch}", fontsize="small")
    where = f"validation case {first['case']}, seed {results[0].facts['seed']}"
    figure.suptitle(f"{where}: prediction red, label green", fontsize="small")
    _save(figure, path)
    return True


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
