"""The facts of domains, a few kB next to weights and next to prepared lists: what inference and planning need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_json

FACTS = "facts.json"
FORMER = "fingerprint.json"
"""What version 0.1 wrote in its place: the same facts with all cases among them."""


def facts_path(folder: str | os.PathLike) -> Path | None:
    """``facts.json`` of a folder, else ``fingerprint.json``; None if there is neither."""
    return next((path for name in (FACTS, FORMER) if (path := Path(folder) / name).is_file()), None)


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """The facts in a folder, as ``{"domains": {NAME: {...}}}``; those that a ``fingerprint.json`` lacks, by its cases.

    Raises:
        InputError: they are missing, or the file holds none.
    """
    path = facts_path(folder)
    if path is None:
        raise InputError(
            f"'{Path(folder) / FACTS}' is missing: it holds spacing, classes and intensities; put it back."
        )
    content = read_json(path)
    domains = content.get("domains")
    if not domains or not isinstance(domains, dict) or not all(isinstance(each, dict) for each in domains.values()):
        raise InputError(f"'{path}' holds no facts of domains; restore it, or prepare or train again.")
    return {**content, "domains": {name: _without_cases(facts) for name, facts in domains.items()}}


def _without_cases(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: fact for name, fact in facts.items() if name != "cases"}
    return {**kept, **size_facts(facts["cases"])} if "cases" in facts else kept


def former_cases(folder: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """The cases of each domain that a ``fingerprint.json`` lists; none without the file."""
    path = Path(folder) / FORMER
    domains = read_json(path).get("domains", {}) if path.is_file() else {}
    return {name: facts.get("cases", []) for name, facts in domains.items()}


def write_facts(folder: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write ``facts.json``, of ``domains`` without their ``cases``; it replaces a ``fingerprint.json``."""
    domains = {name: _without_cases(facts) for name, facts in content["domains"].items()}
    write_json(Path(folder) / FACTS, {**content, "domains": domains})
    (Path(folder) / FORMER).unlink(missing_ok=True)


def size_facts(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sizes in a domain, of its cases that are not test, axes in RAS order; what no case states is left out.

    Args:
        cases: cases with ``split``, ``shape``, ``spacing``, ``orientation`` and ``target_box``, as a scan finds them.

    Returns:
        ``training_cases``, their number; ``spacing_mm``, ``extent_mm`` (of the scan) and ``target_mm`` (of the box
        around all foreground), each with ``median`` and ``p90``; and ``target_share``, the median share of the scan's
        volume that the box fills.
    """
    sizes: dict[str, list[Any]] = {"spacing_mm": [], "extent_mm": [], "target_mm": []}
    shares = []
    for case in cases:
        if case.get("split") == "test" or not case.get("shape") or not case.get("spacing"):
            continue
        order = np.argsort(["RLAPSI".index(letter) // 2 for letter in case.get("orientation") or "RAS"])
        spacing, shape = np.asarray(case["spacing"]), np.asarray(case["shape"])
        sizes["spacing_mm"].append(spacing[order])
        sizes["extent_mm"].append((shape * spacing)[order])
        if case.get("target_box"):
            box = np.subtract(*case["target_box"][::-1])
            sizes["target_mm"].append((box * spacing)[order])
            shares.append(np.prod(box / shape))
    facts: dict[str, Any] = {"training_cases": sum(case.get("split") == "training" for case in cases)}
    for name, values in sizes.items():
        if values:
            found = {"median": np.median(values, axis=0), "p90": np.percentile(values, 90, axis=0)}
            facts[name] = {which: np.round(value, 6).tolist() for which, value in found.items()}
    return {**facts, **({"target_share": round(float(np.median(shares)), 6)} if shares else {})}


def weights_domains(weights: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The facts of every domain that weights were trained on, from the ``facts.json`` next to their file."""
    domains: dict[str, dict[str, Any]] = read_facts(Path(weights).parent)["domains"]
    return domains


def weights_domain(weights: str | os.PathLike, name: str | None = None) -> dict[str, Any]:
    """The facts of one domain that weights were trained on, by its name, or of the first.

    Raises:
        InputError: when there is no such domain.
    """
    domains = weights_domains(weights)
    if name is not None and name not in domains:
        raise InputError(f"'{weights}' has no branch '{name}'; choose one of {', '.join(domains)}.")
    return next(iter(domains.values())) if name is None else domains[name]


def target_spacing(domain: Mapping[str, Any], spatial_size: Sequence[int], margin_mm: float) -> list[float]:
    """Spacing (mm, RAS order) of a grid of ``spatial_size`` voxels over the median target and ``margin_mm`` around it.

    If no case states its target, it is the mean spacing of the images.
    """
    if "target_mm" not in domain:
        return list(domain["spacing_mean"])
    return ((np.asarray(domain["target_mm"]["median"]) + 2 * margin_mm) / np.asarray(spatial_size)).tolist()
