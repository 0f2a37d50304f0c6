"""Zip archives of bundles: written with the same bytes each time, read without trust."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from med3d_ext.errors import InputError
from med3d_ext.io.files import write_atomically
from med3d_ext.tools.weights.release import EARLIEST

BLOCK = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError, NotADirectoryError)
"""What reading a broken archive raises."""


def write_archive(folder: Path, path: Path) -> None:
    """Zip a folder as the one top folder of the archive.

    Order, times and permissions do not depend on the machine: equal files give equal bytes (with one version of zlib).

    Args:
        folder: the folder; its name becomes the top folder's.
        path: the archive, written whole or not at all.
    """
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    with write_atomically(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{folder.name}/{file}", EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix, wherever it is written
            entry.file_size = (folder / file).stat().st_size
            with open(folder / file, "rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, BLOCK)


def digest(path: str | os.PathLike, kind: str = "sha256") -> str:
    """Hexadecimal digest of a file, ``sha256`` or ``sha1``."""
    found = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        InputError: it is no zip archive, or it is damaged where it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        raise InputError(f"'{path.name}' is damaged ({error}); fetch it again.") from error


def extract(path: Path, name: str, folder: Path) -> Path:
    """Unpack a bundle's archive.

    Args:
        path: the archive.
        name: the one top folder that it must hold.
        folder: where that folder comes to lie.

    Returns:
        the bundle's folder.

    Raises:
        InputError: the archive is damaged or too large for the disk, or an entry would not lie inside the bundle's
            folder as a plain file; nothing is written then.
    """
    with open_archive(path) as archive:
        entries = archive.infolist()
        check_entries(entries, name, path.name)
        needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"'{path.name}' unpacks to {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")
        for entry in entries:
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            if not entry.is_dir():
                with archive.open(entry) as source, open(target, "wb") as written:
                    shutil.copyfileobj(source, written, BLOCK)
    return folder / name


def check_entries(entries: list[zipfile.ZipInfo], name: str, archive: str) -> None:
    """Raise InputError unless every entry is a file or folder inside the folder ``name``, named once."""
    seen: set[str] = set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename or ":" in entry.filename:
            raise InputError(f"'{archive}' would write outside its folder ('{entry.filename}'); do not use it.")
        if parts[:1] != (name,):
            raise InputError(f"'{archive}' must hold one folder '{name}', it holds '{entry.filename}'.")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"'{archive}' holds a link ('{entry.filename}'), which may lead anywhere; do not use it.")
        if entry.flag_bits & 1:
            raise InputError(f"'{archive}' is encrypted; do not use it.")
        plain = entry.filename.rstrip("/")
        if plain in seen:
            raise InputError(f"'{archive}' holds '{entry.filename}' twice; do not use it.")
        seen.add(plain)
