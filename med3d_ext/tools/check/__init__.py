"""``check``: what would go wrong in a run, said before it begins: one line each, with the repair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line: how bad (``ERROR`` would stop a run, ``WARNING`` deserves a look), about what, and the sentence."""

    level: str
    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<9}{self.topic:<10}{self.text}"


ok, warning, error = partial(Finding, OK), partial(Finding, WARNING), partial(Finding, ERROR)


def judge(topic: str, faults: Iterable[str], fine: str) -> Iterator[Finding]:
    """An error for each fault, or a line that says what is right."""
    found = [error(topic, fault) for fault in faults]
    yield from found or [ok(topic, fine)]
