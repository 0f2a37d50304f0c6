"""Where results come from: command, versions and git revision, in words that name no machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import med3d_ext

_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy")
_FOLDER = Path(med3d_ext.__file__).parent


def command_line() -> dict[str, Any]:
    """The command as a user types it, and the folder it was typed in, relative to the git checkout if there is one."""
    program = PurePath(sys.argv[0] if sys.argv else "")
    start = [program.name]
    if program.name == "__main__.py":
        start = ["python", "-m", "monai.bundle" if program.parts[-3:-1] == ("monai", "bundle") else program.parent.name]
    root = checkout()
    folder = Path.cwd().relative_to(root).as_posix() if root and Path.cwd().is_relative_to(root) else "."
    return {"command": shlex.join([*start, *(portable(argument) for argument in sys.argv[1:])]), "folder": folder}


def checkout() -> Path | None:
    """The git checkout that this package is in; None outside one."""
    root = _git("rev-parse", "--show-toplevel")
    return None if root is None else Path(root)


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and what it computes with; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "med3d_ext": med3d_ext.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state() -> dict[str, Any] | None:
    """Revision of the checkout that this package is part of and whether tracked files differ; None outside one."""
    revision = _git("rev-parse", "HEAD")
    # Installed into an environment inside someone's checkout, the package is not part of it.
    if revision is None or _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"revision": revision, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def portable(value: Any) -> Any:
    """``value`` with every path in it relative to the working folder, or with ``~`` for the home folder.

    Looks into dictionaries and lists. An absolute path elsewhere becomes relative too; in expressions and sentences
    only the working and the home folder are replaced.
    """
    if isinstance(value, Mapping):
        return {portable(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if not isinstance(value, str | PurePath):
        return value
    text = str(value)
    for folder, name in ((os.getcwd(), "."), (str(Path.home()), "~")):
        if folder != os.sep and folder in text:
            text = text.replace(folder + os.sep, "" if name == "." else "~/").replace(folder, name)
    is_path = os.path.isabs(text) and not any(character in text for character in "$'\"\n")
    return os.path.relpath(text) if is_path else text


def _git(*arguments: str) -> str | None:
    """What git prints, without its last line end; None if git fails or is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_FOLDER, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
