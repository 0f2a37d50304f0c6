"""What became of each tensor when weights were loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """The fate of every tensor of a file and of an encoder. Names are those of the encoder unless said otherwise.

    Attributes:
        file: where the weights came from.
        source: whose weights they are, a key of ``SOURCES``.
        weights: what the file holds, in words.
        network: what the encoder is, in words.
        share: loaded values among the encoder's parameters and BatchNorm statistics, 0 to 1.
        matched: loaded under the same name, unchanged.
        renamed: loaded unchanged under another name: {the file's name: the encoder's}.
        adapted: loaded after a change: {name: what was changed}.
        missing: not in the file, left as they were.
        unexpected: in the file, unknown to the encoder; the file's names.
        dropped: in the file, known to be no part of an encoder (heads, branches); the file's names.
    """

    file: str
    source: str
    weights: str
    network: str
    share: float
    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A small text table: counts, with an example of each."""
        lines = [f"{self.file}: {self.weights} (source: {self.source})", f"{self.share:.1%} of the encoder loaded"]
        for kind in ("matched", "renamed", "adapted", "missing", "unexpected", "dropped"):
            names = getattr(self, kind)
            lines.append(f"  {kind:<10} {len(names):>5}  {_example(names)}".rstrip())
        return "\n".join(lines)

    def to_json(self) -> str:
        """All names, as JSON text."""
        return json.dumps(asdict(self), indent=2)


def _example(names: list[str] | dict[str, str]) -> str:
    if isinstance(names, dict):
        names = [f"{name}: {what}" if " " in what else f"{name} -> {what}" for name, what in names.items()]
    return names[0] + (", ..." if len(names) > 1 else "") if names else ""
