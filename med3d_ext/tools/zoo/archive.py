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

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError, NotADirectoryError)
"""What reading a broken archive raises."""


def digest(path: str | os.PathLike, kind: str = "sha256") -> str:
    """Hexadecimal digest of a file, ``sha256`` or ``sha1``."""
    found = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


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
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, (folder / file).read_bytes(), zipfile.ZIP_DEFLATED)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        InputError: it is not a zip archive, or it is damaged where it is read.
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
        folder: where that folder is written.

    Returns:
        the bundle's folder.

    Raises:
        InputError: the archive is damaged or too large for the disk, or an entry would not be a plain file inside the
            bundle's folder; nothing is written then.
    """
    with open_archive(path) as archive:
        entries, seen = archive.infolist(), set()
        for entry in entries:
            file, parts = entry.filename, PurePosixPath(entry.filename).parts
            leaves = file.startswith("/") or ".." in parts or "\\" in file or ":" in file
            is_plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            for fault, holds in (
                ("would be written outside the bundle's folder", leaves),
                (f"is not in the one folder '{name}'", parts[:1] != (name,)),
                ("is a link, which may lead anywhere", not is_plain),
                ("is encrypted", entry.flag_bits & 1),
                ("is there twice", file.rstrip("/") in seen),
            ):
                if holds:
                    raise InputError(f"'{file}' in '{path.name}' {fault}; do not use this archive.")
            seen.add(file.rstrip("/"))
        needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"'{path.name}' unpacks to {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")
        archive.extractall(folder)
    return folder / name
