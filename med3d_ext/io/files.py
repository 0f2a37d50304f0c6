"""JSON and tables, and files that are either the old one or the new one, whenever the process or the machine stops."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from med3d_ext.errors import InputError
from med3d_ext.io.image_files import detached

logger = logging.getLogger(__name__)

PATIENCE = 5.0  # s; worker processes of a killed training may hold its lock about as long
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""How the names of image files end, in capitals or not."""
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')  # in names of files, on one system or another
_NUMBERS = re.compile(r'\[\n\s*([^"\[\]{}]+?)\n\s*\]')  # in JSON with line breaks, of which its texts hold none
FOLDER_NAMED = ("ct", "mri", "lgemri")  # files of TotalSegmentator's and the left-atrium set's folders


@contextmanager
def write_atomically(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbor of ``path`` and move it there once it is completely on the disk.

    The neighbor starts with a dot and ends with ``.tmp``, so that nothing takes it for a checkpoint; its name is
    fixed, so that a killed run leaves at most one. One process writes a path at a time. After an error ``path`` is as
    before. The mode is ``"wb"`` or ``"w"`` (UTF-8, the line ends as written).
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "inline_container" in str(error):
            # torch.save hides what the disk said
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file
        raise


@contextmanager
def hold(path: Path, refusal: str | None = None, place: Path | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, whose folder is made; whoever waits longer than some seconds says so.

    The operating system frees the lock when its process ends, in whatever way, and the file stays. A process may hold
    it several times. If the file system has no locks, as on some network drives, nobody is kept out, with a warning.

    Args:
        path: the lock file.
        refusal: the message if another process has the lock. Defaults to None: wait for it.
        place: what the lock is for, in messages. Defaults to None: the folder of the lock file.

    Raises:
        InputError: another process has it and ``refusal`` is given, or the folder cannot be written.
    """
    lock = FileLock(str(path), is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        if refusal is not None:
            raise InputError(refusal) from None
        logger.info(f"waiting for the process that is at work in '{place or path.parent}'")
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise InputError(f"'{path.parent}' cannot be written ({error.strerror}); choose another folder.") from error
        logger.warning(f"'{path.parent}' is on a file system without locks: let one process at a time write there")
    try:
        yield
    finally:
        lock.release()


def lock_elsewhere(place: Path) -> Path:
    """A lock file for a place in which none may be left; it keeps out the processes of one user on one machine."""
    return Path(tempfile.gettempdir()) / f"med3d_{_text_digest(f'{Path.home()} {place.resolve()}', 24)}.lock"


@contextmanager
def scratch_folder(target: Path, root: Path | None = None) -> Iterator[Path]:
    """An empty hidden folder for what becomes ``target`` once it is whole; on this machine one process at a time.

    It is in ``root``, or next to ``target``. What a killed process left of it is removed by the next one.
    """
    with hold(lock_elsewhere(target), place=target):
        scratch = (root or target.parent) / f".{target.name}-{platform.node()}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def file_stamp(path: str | os.PathLike) -> list[int]:
    """Size, times (ns) and inode of a file, and of that of its voxels: they change with its content in any case."""
    found = [os.stat(part) for part in (path, *detached(path))]
    return [number for each in found for number in (each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino)]


def sha256(path: str | os.PathLike) -> str:
    """Digest of a file's bytes; of an image whose voxels are in a file of their own, of both."""
    digest = hashlib.sha256()
    for part in (path, *detached(path)):
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def file_digest(path: str | os.PathLike) -> str:
    """:func:`sha256` of a file, read once by a process as long as the file stays as it is."""
    return _digest_of(str(path), tuple(file_stamp(path)))


@cache
def _digest_of(path: str, stamp: tuple[int, ...]) -> str:
    return sha256(path)


def _text_digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def is_image_name(name: str | os.PathLike) -> bool:
    """Whether a file is an image by its name; file managers' leftovers (``._scan.nii``) are not."""
    name = os.path.basename(name)
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def stem(name: str | os.PathLike) -> str:
    """A file's name without its folder and its format."""
    name = os.path.basename(name)
    return next((name[: -len(suffix)] for suffix in (*SUFFIXES, ".dcm") if name.lower().endswith(suffix)), name)


def case_name(path: str | os.PathLike) -> str:
    """What people call the case of an image: its file's name, or its folder's if a layout names all files alike."""
    path = Path(path)
    return path.parent.name or path.name if path.name.split(".")[0] in FOLDER_NAMED else path.name


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names of images by path, changed if two are the same (in capitals or not): the format, or the folders before.

    >>> told_apart({"/a/1/ct.nii": "ct", "/a/2/ct.nii": "ct", "/a/2/mr.nii": "mr"})
    {'/a/1/ct.nii': '1_ct', '/a/2/ct.nii': '2_ct', '/a/2/mr.nii': 'mr'}
    """

    def safe(name: str) -> str:
        return _UNSAFE.sub("-", name).strip().lstrip(".").rstrip(". ") or "image"

    def twins() -> list[str]:
        counts = Counter(name.casefold() for name in names.values())
        return [path for path, name in names.items() if counts[name.casefold()] > 1]

    names = {path: safe(name) for path, name in names.items()}
    same = Counter((os.path.dirname(path), names[path].casefold()) for path in twins())
    for path in twins():
        if same[os.path.dirname(path), names[path].casefold()] > 1:  # one folder holds scan.nii.gz and scan.mha
            names[path] += os.path.basename(path)[len(stem(path)) :]
    for depth in range(2, max((len(Path(path).parts) for path in names), default=0)):
        for path in twins():
            parts = Path(path).parts
            if parts[:-depth]:
                names[path] = safe(f"{parts[-depth]}_{names[path]}")
    for path in twins():  # a_b/c and a/b_c
        names[path] += f"_{_text_digest(path, 8)}"
    long = {path: f"{name[:40]}_{_text_digest(path, 8)}" for path, name in names.items() if len(name.encode()) > 160}
    return names | long


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object; an InputError if the file is missing, is not JSON or holds no object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors write a byte order mark
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not valid JSON ({error}); repair it.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds no JSON object; it must begin with '{{'.")
    return content


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a JSON object atomically, lists of numbers on a line."""
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(content, indent=1))
    with write_atomically(Path(path), "w") as file:
        file.write(text + "\n")


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
        raise InputError(f"'{path}' is not a table in UTF-8 ({error}); save it as CSV.") from error
    for column in columns:
        if column not in names:
            raise InputError(f"'{path}' has no column '{column}'; its first line must name {', '.join(columns)}.")
    if not rows:
        raise InputError(f"'{path}' has no rows; add some below the column names.")
    return [(line, {name: (row[name] or "").strip() for name in names}) for line, row in rows]
