"""A bundle's folder as it is shared: what belongs to it, this package inside, weights, one form of JSON."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import med3d_ext
from med3d_ext.io.files import read_json
from med3d_ext.tools.zoo.checks import check_files, check_network, check_paths, check_version
from med3d_ext.tools.zoo.packed_weights import place_weights

logger = logging.getLogger("med3d_ext.zoo")

PACKAGE = Path(med3d_ext.__file__).parent
SHARED = ("LICENSE", "configs", "docs", "large_files.yml", "scripts")
"""What is taken of a bundle's folder; runs write anywhere else in it."""

KNOWN = {*SHARED, "weights", "models", "eval", PACKAGE.name}


def stage(bundle: Path, folder: Path, weights: str | None) -> Path:
    """Write a bundle into ``folder`` as it is shared, after checking it.

    Args:
        bundle: the bundle's folder.
        folder: an empty folder.
        weights: see :func:`med3d_ext.tools.zoo.packed_weights.place_weights`.

    Returns:
        the bundle's folder in ``folder``, of the same name.

    Raises:
        InputError: the bundle is not fit to be shared; the message names the fault.
    """
    check_version(bundle)
    check_files(bundle)
    staged = folder / bundle.resolve().name
    for name in SHARED:
        _copy(bundle / name, staged / name)
    for path in (staged / "configs").glob("*.json"):
        path.write_text(json.dumps(read_json(path), indent=4) + "\n", encoding="utf-8")
    _copy(PACKAGE, staged / PACKAGE.name)
    said = place_weights(bundle, staged, weights)
    logger.info(f"weights: {said}")
    left = sorted(path.name for path in bundle.iterdir() if path.name not in KNOWN and not _is_hidden(path.name))
    if left:
        logger.info(f"left out: {', '.join(left)}")
    check_paths(staged)
    check_network(staged, said)
    return staged


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_ignored)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")
