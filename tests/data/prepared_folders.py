"""A prepared folder as tests look at it: of each domain the facts and, among them, all that is known of its cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from med3d_ext.data.prepared_files import read_prepared


def domains_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Name to facts, with ``cases``."""
    found = read_prepared(folder)
    return {name: {**facts, "cases": found.cases[name]} for name, facts in found.domains.items()}


def domain_of(folder: Path) -> dict[str, Any]:
    """The only domain."""
    (domain,) = domains_of(folder).values()
    return domain
