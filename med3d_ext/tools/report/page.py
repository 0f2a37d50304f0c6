"""The page of a run: read from the files that training and evaluation write, nothing computed anew."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from med3d_ext.io.files import read_json
from med3d_ext.run.provenance import portable

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: left; font-variant-numeric: tabular-nums; }
code, pre { font-size: .85rem; background: #f4f4f4; padding: .1rem .3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .75rem; }
figure { margin: 1rem 0; } img { max-width: 100%; } .note { border-left: 4px solid #d80; padding-left: .75rem; }
"""
FEW = 10
"""Below this many cases an interval says little."""


def report_page(folder: Path) -> str:
    """The page, as HTML that needs no other file.

    Args:
        folder: the ``output_dir`` of a training.

    Raises:
        InputError: a file of the run is not JSON.
    """
    record = read_json(folder / "run.json")
    summaries = {path.parent: read_json(path) for path in sorted(folder.glob("*/summary.json"))}
    evaluations = {path: summary for path, summary in summaries.items() if "domains" in summary}
    title = f"{_network(record)}: {', '.join(record.get('data') or ['no data stated'])}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(record, evaluations)),
        *(_evaluation(path, summary) for path, summary in evaluations.items()),
        _training(folder, record),
        _origin(record),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n' + "\n".join(
        [*parts, "</body></html>\n"]
    )


def _notes(record: Mapping[str, Any], evaluations: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What a reader must know before the figures."""
    notes = _doubts(evaluations)
    if record["status"] != "completed":
        more = record.get("error", "its figures may change, or it was killed and can be continued")
        notes.append(f"The training is {record['status']}: {more}.")
    if record.get("config", {}).get("dataset_dir") is None:
        notes.append(
            "No dataset_dir was given: unless a labelling server sent the cases, they are generated phantoms, whose "
            "figures say nothing about patients."
        )
    if not any(summary["split"] == "test" for summary in evaluations.values()):
        notes.append("There is no evaluation of the test cases yet: run train.json with evaluate.json.")
    for path, summary in evaluations.items():
        if summary["split"] != "test":
            notes.append(f"'{path.name}' is the {summary['split']} split, by which the weights were chosen or trained.")
        if summary["n"] < FEW:
            notes.append(f"'{path.name}' has {summary['n']} cases: its intervals are too narrow to rely on.")
    return notes


def _doubts(evaluations: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What an evaluation says of itself, see :class:`med3d_ext.data.leakage.Evaluated`."""
    notes = []
    for path, summary in evaluations.items():
        if seen := summary.get("seen_by_weights"):
            notes.append(
                f"'{path.name}' has {len(seen)} cases that the weights have seen in training or validation "
                f"({', '.join(seen)}): their figures say nothing about new cases."
            )
        for domain, (trained, given) in summary.get("other_classes", {}).items():
            notes.append(
                f"'{path.name}' compares classes of other names: the weights segment {', '.join(trained)}, the labels "
                f"of {domain} are {', '.join(given)}."
            )
    return notes


def _evaluation(folder: Path, summary: Mapping[str, Any]) -> str:
    figures = [
        [domain, metric, figure["n"], *(_number(figure.get(key, "-")) for key in ("mean", "interval_95", "minimum"))]
        for domain, metrics in summary["domains"].items()
        for metric, figure in metrics.items()
    ]
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    overlays = sorted(folder.glob("overlay_*.png"))
    return "\n".join(
        [
            f"<h2>Figures of the {escape(summary['split'])} cases ({escape(folder.name)})</h2>",
            _table(["data", "figure", "n", "mean", "95 % interval", "lowest case"], figures),
            "<h3>Cases</h3>",
            _table(names, [[_number(cell) for cell in row] for row in rows]),
            *(_picture(path, path.stem.removeprefix("overlay_")) for path in overlays),
        ]
    )


def _training(folder: Path, record: Mapping[str, Any]) -> str:
    best = dict(record.get("best", {}))
    epoch = best.pop("epoch", None)
    figures = ", ".join(f"{name} {_number(value)}" for name, value in best.items())
    facts = {
        "status": record["status"],
        "epochs": record.get("epochs", "running"),
        "best epoch": f"{epoch} ({figures} of the validation)" if best else "not known yet",
        "duration": timedelta(seconds=round(record["duration_seconds"])) if "duration_seconds" in record else "running",
        "starts": 1 + len(record.get("earlier", [])),
        "device": _device(record.get("device", {})),
        "initial weights": _initial_weights(folder, record),
    }
    curves = [path for name in ("loss", "dice", "auc") if (path := folder / f"{name}.png").is_file()]
    pictures = [_picture(path, path.stem) for path in curves]
    return "\n".join(["<h2>Training</h2>", _facts(facts), *pictures, *_sanity(folder)])


def _sanity(folder: Path) -> list[str]:
    """What was trained on, as it was drawn before the first epoch."""
    picture, record = folder / "sanity.png", folder / "sanity.json"
    if not (picture.is_file() and record.is_file()):
        return []
    oddities = read_json(record)["oddities"]
    lines = "".join(f"<li>{escape(line)}</li>" for line in oddities)
    found = f"<ul>{lines}</ul>" if oddities else "<p>Nothing suspicious was found in them; look at them anyway.</p>"
    return ["<h2>Training cases as the network sees them</h2>", found, _picture(picture, "sanity")]


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
    report = read_json(path)
    if "share" not in report:
        return str(portable(report["start"]))
    return f"{portable(report['file'])}: {report['share']:.1%} of the encoder's parameters loaded"


def _origin(record: Mapping[str, Any]) -> str:
    git = record.get("git") or {}
    facts = {
        "seed": record.get("seed"),
        "revision": f"{git.get('revision')}{', with uncommitted changes' if git.get('dirty') else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "cases": ", ".join(f"{name} {len(cases)}" for name, cases in (record.get("data") or {}).items()),
    }
    command = f"<pre>{escape(record.get('command', ''))}</pre>"
    return "\n".join(["<h2>Origin</h2>", command, _facts(facts), "<p>The full record is in <code>run.json</code>.</p>"])


def _network(record: Mapping[str, Any]) -> str:
    network = str(record.get("config", {}).get("network_def", {}).get("_target_", "network")).rpartition(".")[2]
    return f"{network}, {record.get('config', {}).get('network_name', 'depth not stated')}"


def _number(value: Any) -> str:
    if value is None:
        return "-"  # an interval of one case, a mean of none
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    try:
        return f"{float(value):.3f}"
    except (TypeError, ValueError):
        return str(value)


def _facts(facts: Mapping[str, Any]) -> str:
    return _table([], [[name, value] for name, value in facts.items()])


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if names else ''}{body}</table>"


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    words = escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
