"""What a command leaves behind, without what differs between equal runs: times, and pictures of them."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

VOLATILE = re.compile(
    r"second|time|date|started|finished|elapsed|duration|created|written|hours|minutes|memory|command|argv|^stamp$|^earlier$"
)
IGNORED = re.compile(
    r"tfevents|\.lock$|\.log$|\.png$|\.html$|\.out$|\.err$|/cache/|initial_weights|training_state\.pt$"
)


def results(folder: Path) -> dict[str, Any]:
    """Each file below ``folder`` by its content: tensors of ``.pt``, values of ``.json``, else its digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: content(path) for name, path in names.items() if not IGNORED.search("/" + name)}


def content(path: Path) -> Any:
    """What two equal results have in common."""
    if path.suffix == ".pt":
        return tensors(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix == ".json":
        return lasting(json.loads(path.read_text()))
    return sha256(path.read_bytes()).hexdigest()


def tensors(value: Any) -> Any:
    """Digest of each tensor in a checkpoint."""
    if isinstance(value, torch.Tensor):
        return sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    return [tensors(item) for item in value] if isinstance(value, list | tuple) else value


def lasting(value: Any) -> Any:
    """A JSON value without its times and places."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if not VOLATILE.search(key)}
    if isinstance(value, list):
        return [lasting(item) for item in value]
    return value.rpartition("/")[2] if isinstance(value, str) else value  # of a path the name


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
