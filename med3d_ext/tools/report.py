"""The verb ``report``: what a run left behind, on one page that can be sent to a colleague."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.run.provenance import portable
from med3d_ext.tools.bundle_folder import find_bundle

RECORD = "run.json"
FEW = 10
"""Below this many cases an interval says little."""


def report(run: str) -> str:
    """Write report.html into the folder of a run: figures with intervals, curves, overlays, cases, origin.

    The page contains its pictures and needs no other file. You can write it at any time, even during the training.

    Args:
        run: the output_dir of a training, or a bundle's folder or name, which means its eval folder.
    """
    folder = Path(run).expanduser()
    if not (folder / RECORD).is_file():
        if folder.is_dir() and not (folder / "configs").is_dir():
            raise InputError(f"'{folder}' has no {RECORD}; give the output_dir of a training, or a bundle.")
        folder = find_bundle(run) / "eval"
    if not (folder / RECORD).is_file():
        raise InputError(f"'{folder}' has no {RECORD}; train the bundle first, or give the training's output_dir.")
    templates = Environment(loader=PackageLoader("med3d_ext.tools"), autoescape=True, keep_trailing_newline=True)
    templates.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    with write_atomically(folder / "report.html", "w") as file:
        file.write(templates.get_template("report.html").render(page_content(folder)))
    return str(folder / "report.html")


def page_content(folder: Path) -> dict[str, Any]:
    """What the template ``report.html`` asks for, from the files that training and evaluation write."""
    record = read_json(folder / RECORD)
    config, git = record.get("config", {}), record.get("git") or {}
    summaries = {path.parent: read_json(path) for path in sorted(folder.glob("*/summary.json"))}
    summaries = {path: summary for path, summary in summaries.items() if "domains" in summary}
    network = str(config.get("network_def", {}).get("_target_", "network")).rpartition(".")[2]
    depth = config.get("network_name", "depth not stated")
    best = dict(record.get("best", {}))
    epoch = best.pop("epoch", None)
    figures = ", ".join(f"{name} {_number(value)}" for name, value in best.items())
    sanity = [folder / "sanity.png", folder / "sanity.json"]
    is_drawn = all(path.is_file() for path in sanity)
    return {
        "title": f"{network}, {depth}: {', '.join(record.get('data') or ['no data stated'])}",
        "notes": list(_notes(record, summaries)),
        "evaluations": [_evaluation(path, summary) for path, summary in summaries.items()],
        "training": {
            "status": record["status"],
            "epochs": record.get("epochs", "running"),
            "best epoch": f"{epoch} ({figures} of the validation)" if best else "not known yet",
            "duration": timedelta(seconds=round(record["duration_seconds"]))
            if "duration_seconds" in record
            else "running",
            "starts": 1 + len(record.get("earlier", [])),
            "device": _device(record.get("device", {})),
            "initial weights": _initial_weights(folder, record),
        },
        "curves": [path for name in ("loss", "dice", "auc") if (path := folder / f"{name}.png").is_file()],
        "sanity": sanity[0] if is_drawn else None,
        "oddities": read_json(sanity[1])["oddities"] if is_drawn else [],
        "command": record.get("command", ""),
        "origin": {
            "seed": record.get("seed"),
            "revision": f"{git.get('revision')}{', with uncommitted changes' if git.get('dirty') else ''}",
            "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
            "cases": ", ".join(f"{name} {len(cases)}" for name, cases in (record.get("data") or {}).items()),
        },
    }


def _notes(record: Mapping[str, Any], summaries: Mapping[Path, Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must know before the figures; first what :class:`~med3d_ext.data.leakage.Evaluated` found."""
    for path, summary in summaries.items():
        if seen := summary.get("seen_by_weights"):
            yield (
                f"'{path.name}' has {len(seen)} cases that the weights have seen in training or validation "
                f"({', '.join(seen)}): their figures say nothing about new cases."
            )
        for domain, (trained, given) in summary.get("other_classes", {}).items():
            yield (
                f"'{path.name}' compares classes of other names: the weights segment {', '.join(trained)}, the labels "
                f"of {domain} are {', '.join(given)}."
            )
    if record["status"] != "completed":
        more = record.get("error", "its figures may change, or it was killed and can be continued")
        yield f"The training is {record['status']}: {more}."
    if record.get("config", {}).get("dataset_dir") is None:
        yield (
            "No dataset_dir was given: unless a labelling server sent the cases, they are generated phantoms, whose "
            "figures say nothing about patients."
        )
    if not any(summary["split"] == "test" for summary in summaries.values()):
        yield "There is no evaluation of the test cases yet: run train.json with evaluate.json."
    for path, summary in summaries.items():
        if summary["split"] != "test":
            yield f"'{path.name}' is the {summary['split']} split, by which the weights were chosen or trained."
        if summary["n"] < FEW:
            yield f"'{path.name}' has {summary['n']} cases: its intervals are too narrow to rely on."


def _evaluation(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return {
        "folder": folder,
        "split": summary["split"],
        "figures": [
            [domain, metric, one["n"], *(_number(one.get(key, "-")) for key in ("mean", "interval_95", "minimum"))]
            for domain, metrics in summary["domains"].items()
            for metric, one in metrics.items()
        ],
        "columns": columns,
        "cases": [[_number(cell) for cell in row] for row in rows],
        "overlays": sorted(folder.glob("overlay_*.png")),
    }


def _device(device: Mapping[str, Any]) -> str:
    """As people say it: `2 CPU threads, AMD EPYC`, `4 x NVIDIA A100`."""
    if not device:
        return "not stated"
    threads, processes, name = device.get("threads", 1), device.get("processes", 1), device.get("name")
    if device.get("type") == "cuda":
        return f"{processes} x {name}" if processes > 1 else str(name)
    parts = [f"{threads} CPU thread{'s' * (threads != 1)}" + f" in each of {processes} processes" * (processes > 1)]
    return ", ".join([*parts, *([str(name)] if name else [])])


def _initial_weights(folder: Path, record: Mapping[str, Any]) -> str:
    path = folder / "initial_weights.json"
    if not path.is_file():
        return str(record.get("overrides", {}).get("init", "scratch"))
    loaded = read_json(path)
    if "share" not in loaded:
        return str(portable(loaded["start"]))
    return f"{portable(loaded['file'])}: {loaded['share']:.1%} of the encoder's parameters loaded"


def _number(value: Any) -> str:
    if value is None:
        return "-"  # an interval of one case, a mean of none
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    try:
        return f"{float(value):.3f}"
    except (TypeError, ValueError):
        return str(value)
