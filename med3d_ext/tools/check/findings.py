"""What a check has found: one line each, with the repair where something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from med3d_ext.run.one_line import input_error_message

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line: how bad, about what, and the sentence."""

    level: str
    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<9}{self.topic:<10}{self.text}"


def ok(topic: str, text: str) -> Finding:
    """Something that was looked at and is right."""
    return Finding(OK, topic, text)


def warning(topic: str, text: str) -> Finding:
    """Something that lets a run begin, but deserves a look."""
    return Finding(WARNING, topic, text)


def error(topic: str, text: str) -> Finding:
    """Something that would stop a run."""
    return Finding(ERROR, topic, text)


def gather(topic: str, check: Callable[..., Iterable[Finding]], *arguments: Any) -> list[Finding]:
    """The findings of one check; what it raises is its last finding, so that the other checks still speak."""
    findings: list[Finding] = []
    try:
        findings.extend(check(*arguments))
    except Exception as fault:  # a config may hold anything
        findings.append(error(topic, input_error_message(fault) or _last_cause(fault)))
    return findings


def _last_cause(fault: BaseException) -> str:
    """MONAI names the component and keeps the reason as the cause: both in one line."""
    root = fault
    while root.__cause__ is not None:
        root = root.__cause__
    texts = [" ".join(str(one).split())[:300] or type(one).__name__ for one in (fault, root)]
    return texts[0] if root is fault or texts[1] in texts[0] else f"{texts[0]} {texts[1]}"


def summary(findings: Iterable[Finding]) -> str:
    """All lines and a last one that counts them."""
    lines = list(findings)
    counts = {level: sum(finding.level == level for finding in lines) for level in (OK, WARNING, ERROR)}
    last = f"{counts[OK]} ok, {counts[WARNING]} {_many('warning', counts[WARNING])}"
    return "\n".join([*map(str, lines), f"{last}, {counts[ERROR]} {_many('error', counts[ERROR])}"])


def _many(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
