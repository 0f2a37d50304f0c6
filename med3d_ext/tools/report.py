"""The verb ``report``: what a run left behind, on one page that can be sent to a colleague."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, Undefined

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.run.provenance import portable
from med3d_ext.tools.bundle_folder import find_bundle

RECORD = "run.json"


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
    templates.filters |= {
        "base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
        "columns": lambda path: _table(path)[0],
        "number": _number,
        "rows": lambda path: [map(_number, row) for row in _table(path)[1:]],
    }
    with write_atomically(folder / "report.html", "w") as file:
        file.write(templates.get_template("report.html").render(_content(folder)))
    return str(folder / "report.html")


def _content(folder: Path) -> dict[str, Any]:
    """What the template asks for, from the files that training and evaluation write."""
    record = read_json(folder / RECORD)
    config, git = record.get("config", {}), record.get("git") or {}
    summaries = {path.parent: read_json(path) for path in sorted(folder.glob("*/summary.json"))}
    network = str(config.get("network_def", {}).get("_target_", "network")).rpartition(".")[2]
    best = dict(record.get("best", {}))
    epoch = best.pop("epoch", None)
    figures = ", ".join(f"{name} {_number(value)}" for name, value in best.items())
    seconds = record.get("duration_seconds")
    sanity = [folder / "sanity.png", folder / "sanity.json"]
    return {
        "folder": folder,
        "record": record,
        "network": f"{network}, {config.get('network_name', 'depth not stated')}",
        "dataset_dir": config.get("dataset_dir"),
        "evaluations": {path: summary for path, summary in summaries.items() if "domains" in summary},
        "training": {
            "status": record["status"],
            "epochs": record.get("epochs", "running"),
            "best epoch": f"{epoch} ({figures} of the validation)" if best else "not known yet",
            "duration": "running" if seconds is None else timedelta(seconds=round(seconds)),
            "starts": 1 + len(record.get("earlier", [])),
            "device": _device(record.get("device", {})),
            "initial weights": _initial_weights(folder, record),
        },
        "curves": [path for name in ("loss", "dice", "auc") if (path := folder / f"{name}.png").is_file()],
        "sanity": read_json(sanity[1]) if all(path.is_file() for path in sanity) else None,
        "origin": {
            "seed": record.get("seed"),
            "revision": f"{git.get('revision')}{', with uncommitted changes' if git.get('dirty') else ''}",
            "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
            "cases": ", ".join(f"{name} {len(cases)}" for name, cases in (record.get("data") or {}).items()),
        },
    }


def _table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


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
    if value is None or isinstance(value, Undefined):
        return "-"  # an interval of one case, a mean of none
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    try:
        return f"{float(value):.3f}"
    except (TypeError, ValueError):
        return str(value)
