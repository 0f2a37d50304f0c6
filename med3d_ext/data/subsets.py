"""Parts of a prepared data set, for the studies of the paper: some of its domains, a share of its training cases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from med3d_ext.data.domains import task_of
from med3d_ext.errors import InputError


def choose_domains(domains: Mapping[str, Mapping[str, Any]], wanted: int | str | Sequence[str] | None) -> list[str]:
    """Names of the chosen domains, in the order of ``domains``.

    Args:
        domains: name to facts; the paper's name, ``organ``, and the task number stand for the name as well.
        wanted: names, as a list or joined by commas, or how many: 4 takes the first four in the order of the paper's
            table 2 (brain, hippocampus, prostate, liver, heart, pancreas, vessel, spleen). None takes all.

    Raises:
        InputError: when a name is unknown or there are fewer domains.
    """
    if wanted is None or wanted == "":
        return list(domains)
    if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdigit()):
        if not 1 <= int(wanted) <= len(domains):
            raise InputError(f"domains must be 1 to {len(domains)}, as many as the data set has, got {wanted}.")
        return list(domains)[: int(wanted)]
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    chosen = set()
    for name in names:
        hits = [key for key, facts in domains.items() if name in (key, facts.get("organ"), task_of(key))]
        if not hits:
            raise InputError(f"domains must name some of {', '.join(domains)}, got '{name}'.")
        chosen |= set(hits)
    return [name for name in domains if name in chosen]


def nested_share(items: Sequence[dict[str, Any]], share: float, seed: int = 0) -> list[dict[str, Any]]:
    """A share of each domain's items; a larger share holds every smaller one (paper, section 4.1 and figure 4).

    Args:
        items: items with ``domain`` and ``sha256``; one scan of several domains is as early in each of them.
        share: above 0 and at most 1. At least one item of each domain remains.
        seed: seed of the draw.

    Raises:
        InputError: when ``share`` is out of range.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, the share of the training cases, got {share}.")
    ranked: dict[str, list[dict[str, Any]]] = {}
    for item in sorted(items, key=lambda item: hashlib.sha256(f"{seed}/share/{item['sha256']}".encode()).hexdigest()):
        ranked.setdefault(item["domain"], []).append(item)
    kept = {id(item) for each in ranked.values() for item in each[: max(1, round(share * len(each)))]}
    return [item for item in items if id(item) in kept]
