"""JSON and tables, and files that are either the old one or the new one, whenever the process or the machine stops."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from med3d_ext.errors import InputError

FOLDER_NAMED = ("ct", "mri", "lgemri")  # files of TotalSegmentator's and the left-atrium set's folders


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


def case_name(path: str | os.PathLike) -> str:
    """What people call the case of an image: its file's name, or its folder's where a layout names all files alike."""
    path = Path(path)
    return path.parent.name or path.name if path.name.split(".")[0] in FOLDER_NAMED else path.name


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: when the file is missing, is not JSON or holds no object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not valid JSON ({error}); repair it.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds no JSON object; it must begin with '{{'.")
    return content


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    with write_atomically(Path(path), "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")


def read_table(path: str | os.PathLike, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV table with a line of column names; each row comes with its line number, cells without outer spaces.

    Raises:
        InputError: when the file is missing or no text, lacks one of ``columns``, or has no rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            table = csv.DictReader(file, restval="")
            names = [str(name).strip() for name in table.fieldnames or []]
            table.fieldnames = names
            rows = [(table.line_num, row) for row in table]
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"'{path}' is no table in UTF-8 ({error}); save it as CSV.") from error
    for column in columns:
        if column not in names:
            raise InputError(f"'{path}' has no column '{column}'; its first line must name {', '.join(columns)}.")
    if not rows:
        raise InputError(f"'{path}' has no rows; add some below the column names.")
    return [(line, {name: (row[name] or "").strip() for name in names}) for line, row in rows]
