"""Which bundle a command means: a folder, or the name of one."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import med3d_ext
from med3d_ext.errors import InputError

PACKAGE = Path(med3d_ext.__file__).resolve().parent
MARK = Path("configs", "metadata.json")  # what makes a folder a bundle


def find_bundle(name_or_path: str | os.PathLike) -> Path:
    """The folder of a bundle.

    Args:
        name_or_path: the path of its folder, or its name: looked for in ``./bundles``, then next to this package,
            which is next to ``bundles`` in a checkout and inside the bundle in a packed one.

    Returns:
        the folder as it was found: relative where it was given so.

    Raises:
        InputError: there is no such bundle; the message names the nearest.
    """
    path = Path(name_or_path).expanduser()
    if (path / MARK).is_file():
        return path
    known = _known_bundles()
    if path.name == str(name_or_path) and path.name in known:
        return known[path.name]
    if path.is_dir():
        fault = f"'{path}' is not a bundle, it has no {MARK.as_posix()}"
    else:
        fault = f"There is no bundle '{name_or_path}'"
    nearest = difflib.get_close_matches(path.name, known, n=1, cutoff=0.0)
    if not nearest:
        raise InputError(f"{fault}; give the path of a bundle's folder.")
    raise InputError(
        f"{fault}; the nearest is '{nearest[0]}' in '{known[nearest[0]].parent}', or give a folder's path."
    )


def _known_bundles() -> dict[str, Path]:
    """Name to folder; what lies in ``./bundles`` comes before what is next to this package."""
    beside = PACKAGE.parent
    folders = [*_inside(Path("bundles")), *_inside(beside / "bundles"), beside]
    found: dict[str, Path] = {}
    for folder in folders:
        if (folder / MARK).is_file():
            found.setdefault(folder.name, folder)
    return found


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
