"""What became of the cases of a prediction, on the screen and in ``summary.json``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.io.files import write_json
from med3d_ext.run.provenance import command_line, versions


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        case: its name, or what was typed where no image was found.
        status: "done", "skipped" (its result was there) or "failed".
        reason: of a failure, a sentence.
        seconds: how long it took.
        labels: name, voxels and volume of every label.
        warnings: what must be known about its result, a sentence each.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.case} FAILED: {self.reason}"
        if self.status == "skipped":
            return f"{self.case}: already has a result, skipped (--overwrite replaces it)"
        found = [f"{each['name']} {_milliliters(each['volume_ml'])}" for each in self.labels.values()]
        return f"{self.case}: {', '.join(found)}; {self.seconds:.1f} s"


class Summary:
    """Outcomes of one run, written after each case.

    Args:
        path: the file.
        origin: where the results come from: bundle, version, weights, options.
        total: number of cases.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any], total: int) -> None:
        self.path, self.origin, self.total = path, origin, total
        self.outcomes: list[Outcome] = []
        self._begin = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Note an outcome and write the file."""
        self.outcomes.append(outcome)
        done = [
            {"case": each.case, "seconds": each.seconds, "labels": dict(each.labels), "warnings": list(each.warnings)}
            for each in self.of("done")
        ]
        content = {
            **command_line(),
            **self.origin,
            "versions": versions(),
            "complete": len(self.outcomes) == self.total,
            "seconds": round(time.monotonic() - self._begin, 2),
            "done": done,
            "skipped": [each.case for each in self.of("skipped")],
            "failed": [{"case": each.case, "reason": each.reason} for each in self.of("failed")],
        }
        write_json(self.path, content)

    def of(self, status: str) -> list[Outcome]:
        """The outcomes of one status."""
        return [each for each in self.outcomes if each.status == status]

    @property
    def seconds_left(self) -> float:
        """How long the other cases will take if they take as long as those so far."""
        return (time.monotonic() - self._begin) / len(self.outcomes) * (self.total - len(self.outcomes))

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(status))} {status}" for status in ("done", "skipped", "failed"))
        warned = [f"  {each.case}: {sentence}" for each in self.of("done") for sentence in each.warnings]
        failed = [f"  {each}" for each in self.of("failed")]
        return "\n".join([*(["warnings:", *warned] if warned else []), *failed, f"{counts}; see '{self.path}'"])


def _milliliters(volume: float | None) -> str:
    return "of unknown volume" if volume is None else f"{volume:.1f} ml"
