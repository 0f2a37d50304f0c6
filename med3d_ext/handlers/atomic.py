"""Files that are either the old one or the new one, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def write_atomically(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbor of ``path`` and move it there once it is completely on the disk.

    The neighbor starts with a dot and ends with ``.tmp``, so that nothing takes it for a checkpoint; its name is
    fixed, so that a killed run leaves at most one. One process writes a path at a time.

    Args:
        path: the file to replace; its folder is made where missing.
        mode: ``"wb"`` or ``"w"`` (UTF-8, the line ends as written).

    Raises:
        OSError: the file could not be written; ``path`` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
