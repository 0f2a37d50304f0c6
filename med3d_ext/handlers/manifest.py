"""A run's record: what was run, with what, on what data, and how it ended."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from med3d_ext.handlers.values import key_metric, scalar_metrics
from med3d_ext.io.files import write_atomically
from med3d_ext.run.one_line import user_message
from med3d_ext.run.provenance import command_line, git_state, portable, versions
from med3d_ext.run.rank import rank
from med3d_ext.run.start import effective_config, run_arguments


class RunManifest:
    """Write ``run.json`` when an engine starts and complete it when the engine ends.

    Holds the command, the effective config and its overrides, the versions, the device, the git revision, the
    SHA-256 of the data's images, the seed, the times, and the status: ``running``, ``completed``, ``failed`` or
    ``interrupted``. A run that was killed stays ``running``; the next one in the folder lists it as interrupted
    under ``earlier``. No path in it names the machine. Rank 0 writes.

    List it before handlers that raise again what goes wrong, such as ``StatsHandler``: those after them are not told.

    Args:
        output_dir: folder of the file, made where missing.
        data: the :class:`~med3d_ext.data.PreparedData`, or its ``fingerprint``, which older configs give. Defaults to
            none.
        seed: the run's seed. Defaults to none.
        evaluator: the engine whose best metric is recorded. Defaults to none: the engine itself.
        name: name of the file. Defaults to ``run.json``.
    """

    def __init__(
        self,
        output_dir: str,
        data: Any = None,
        seed: int | None = None,
        evaluator: Any = None,
        name: str = "run.json",
    ) -> None:
        self.path = Path(output_dir) / name
        self.data = data
        self.seed = seed
        self.evaluator = evaluator
        self.record: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, or to the evaluator of an evaluation."""
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.COMPLETED, self.complete)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Write what is known at the start."""
        self._begin = time.monotonic()
        self.record = {
            "status": "running",
            "started": _now(),
            **command_line(),
            **_from_record(self.path.parent),
            "overrides": portable(run_arguments()[1]),
            "config": portable(effective_config()),
            "lengths": getattr(engine.state, "lengths", None),  # several where --epochs changed on the way
            "seed": self.seed,
            "data": _data_hashes(self.data),
            "versions": versions(),
            "git": git_state(),
            "device": _device(engine),
            "earlier": _earlier(self.path),
        }
        self._write()

    def complete(self, engine: Engine) -> None:
        """Add the end and the figures."""
        self._end("completed", engine)

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Add how the run failed, and let the exception go on."""
        # The engine reports an exception of an iteration twice; before the start there is nothing to complete.
        if self.record.get("status") == "running":
            message = user_message(error) or f"{type(error).__name__}: {error}"
            self.record["error"] = portable(message)
            self._end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", engine)
        raise error

    def _end(self, status: str, engine: Any) -> None:
        judge = engine if self.evaluator is None else self.evaluator
        metric = key_metric(judge)
        self.record |= {
            "status": status,
            "finished": _now(),
            "duration_seconds": round(time.monotonic() - self._begin, 3),
            "epochs": engine.state.epoch,
            "iterations": engine.state.iteration,
            "metrics": scalar_metrics(judge.state.metrics),
        }
        if metric is not None:
            best = scalar_metrics({metric[0]: judge.state.best_metric})
            self.record["best"] = {**best, "epoch": judge.state.best_metric_epoch}
        self._write()

    def _write(self) -> None:
        with write_atomically(self.path, "w") as file:
            json.dump(self.record, file, indent=2, default=str)
            file.write("\n")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _device(engine: Any) -> dict[str, Any]:
    device = torch.device(getattr(engine.state, "device", None) or "cpu")
    is_cuda = device.type == "cuda"
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if is_cuda else _processor(),
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
        "system": platform.system(),
    }


def _from_record(folder: Path) -> dict[str, str]:
    """The working folder as seen from the record's, where that is inside it: no other path may be in a record."""
    back = Path(os.path.relpath(os.getcwd(), folder))
    return {"from_record": back.as_posix()} if set(back.parts) <= {"..", "."} else {}


def _processor() -> str:
    """The processor's name as its maker gives it, where the system tells; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _data_hashes(data: Any) -> dict[str, Any] | None:
    """Image name to SHA-256, by domain."""
    if data is None:
        return None
    cases = {name: each["cases"] for name, each in data["domains"].items()} if isinstance(data, dict) else data.cases
    return {name: {portable(str(case["image"])): case.get("sha256") for case in each} for name, each in cases.items()}


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
