"""A run's record: what was run, with what, on what data, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from med3d_ext.handlers.base import Handler, key_metric, scalar_metrics
from med3d_ext.io.files import write_atomically
from med3d_ext.run.one_line import user_message
from med3d_ext.run.provenance import command_line, git_state, portable, versions
from med3d_ext.run.rank import processes
from med3d_ext.run.start import effective_config, run_arguments


@dataclass(eq=False)
class RunManifest(Handler):
    """Write ``run.json`` when an engine starts and complete it when the engine ends.

    Holds the command, the effective config and its overrides, the versions, the device, the git revision, the
    SHA-256 of the data's images, the seed, the times, and the status: ``running``, ``completed``, ``failed`` or
    ``interrupted``. A run that was killed stays ``running``; the next one in the folder lists it as interrupted
    under ``earlier``. No path in it names the machine.

    List it before handlers that raise again what goes wrong, such as ``StatsHandler``: those after them are not told.

    Args:
        output_dir: folder of the file, made if missing.
        data: the :class:`~med3d_ext.data.PreparedData`, or its ``fingerprint``, which older configs give. Defaults to
            none.
        seed: the run's seed. Defaults to none.
        evaluator: the engine whose best metric is recorded. Defaults to none: the engine itself.
    """

    output_dir: str
    data: Any = None
    seed: int | None = None
    evaluator: Any = None

    def __post_init__(self) -> None:
        self.path = Path(self.output_dir) / "run.json"
        self.record: dict[str, Any] = {}

    def started(self, engine: Engine) -> None:
        self._begin = time.monotonic()
        # The working folder as seen from the record's, if that is inside it: no other path may be in a record.
        back = Path(os.path.relpath(os.getcwd(), self.path.parent))
        self.record = {
            "status": "running",
            "started": _now(),
            **command_line(),
            **({"from_record": back.as_posix()} if set(back.parts) <= {"..", "."} else {}),
            "overrides": portable(run_arguments()[1]),
            "config": portable(effective_config()),
            "lengths": getattr(engine.state, "lengths", None),  # several if --epochs changed on the way
            "seed": self.seed,
            "data": self._hashes(),
            "versions": versions(),
            "git": git_state(),
            "device": _device(engine),
            "earlier": _earlier(self.path),
        }
        self._write()

    def completed(self, engine: Engine) -> None:
        self._end("completed", engine)

    def exception_raised(self, engine: Engine, error: BaseException) -> None:
        # The engine reports an exception of an iteration twice; before the start there is nothing to complete.
        if self.record.get("status") == "running":
            self.record["error"] = portable(user_message(error) or f"{type(error).__name__}: {error}")
            self._end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", engine)
        raise error

    def _end(self, status: str, engine: Any) -> None:
        judge = engine if self.evaluator is None else self.evaluator
        self.record |= {
            "status": status,
            "finished": _now(),
            "duration_seconds": round(time.monotonic() - self._begin, 3),
            "epochs": engine.state.epoch,
            "iterations": engine.state.iteration,
            "metrics": scalar_metrics(judge.state.metrics),
        }
        if metric := key_metric(judge):
            best = scalar_metrics({metric[0]: judge.state.best_metric})
            self.record["best"] = {**best, "epoch": judge.state.best_metric_epoch}
        self._write()

    def _write(self) -> None:
        with write_atomically(self.path, "w") as file:
            json.dump(self.record, file, indent=2, default=str)
            file.write("\n")

    def _hashes(self) -> dict[str, Any] | None:
        """Image name to SHA-256, by domain."""
        if self.data is None:
            return None
        old = isinstance(self.data, dict)
        cases = {name: each["cases"] for name, each in self.data["domains"].items()} if old else self.data.cases
        return {name: {portable(str(one["image"])): one.get("sha256") for one in each} for name, each in cases.items()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _device(engine: Any) -> dict[str, Any]:
    device = torch.device(getattr(engine.state, "device", None) or "cpu")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # the processor's as its maker gives it, if the system has it; else its architecture
        table = Path("/proc/cpuinfo")
        lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor() or platform.machine()
    return {
        "type": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "system": platform.system(),
    }


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The runs that the folder has seen, in short."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        status = "interrupted" if before["status"] == "running" else before["status"]
        kept = ("command", "started", "finished", "epochs", "versions", "device")
        entry = {"status": status, **{key: before[key] for key in kept if key in before}}
        return [*before.get("earlier", []), entry]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # no record, or a broken one: this run's counts
