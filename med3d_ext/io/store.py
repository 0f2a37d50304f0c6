"""Volumes that were read once, shared by all bundles and runs of a user: decoded files, and items ready to be drawn."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.serialization import config

from med3d_ext.errors import InputError
from med3d_ext.io.files import file_digest, hold
from med3d_ext.io.image_files import Header, is_dicom_input, read_image, read_volume

logger = logging.getLogger("med3d_ext.store")
GB = 1e9
DEFAULT_GB = 20.0
RESERVE = 1 * GB  # of the disk, left to others
LEFTOVER = 3600.0  # s; a file that is still being written after so long was left by a killed process
VOLUME, ITEM = "volume", "item"
READER = 1  # raise it when the reader gives other voxels for the same file
_checked: list[torch.Tensor] = []  # marks of the entries that were read to their checksums


class Store:
    """A folder of uncompressed, memory-mapped entries, each named after all that is in it.

    ``$MED3D_STORE``, else ``store`` in ``$MED3D_CACHE``, which is ``~/.cache/med3d_ext`` by default, or in
    ``$XDG_CACHE_HOME``. Entries are written atomically, and read to their checksums once by a process and its workers;
    a damaged or foreign one is made again, with a warning. Of more than ``gigabytes`` the entries that were used the
    longest time ago are removed, but for the items that this run has used: data that do not fit would otherwise push
    each other out before they are used again. If nothing can be written, everything works without a store, with one
    warning. Any number of processes may share a store; it may be deleted at any time.

    Args:
        folder: the folder, made when something is written. Defaults to None: see above.
        gigabytes: what it may hold. Defaults to None: ``$MED3D_STORE_GB``, else 20.

    Raises:
        InputError: the size is not a number of at least 0.
    """

    def __init__(self, folder: str | os.PathLike | None = None, gigabytes: float | None = None) -> None:
        caches = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "med3d_ext")
        default = os.path.join(os.environ.get("MED3D_CACHE") or caches, "store")
        self.folder = Path(folder or os.environ.get("MED3D_STORE") or default).expanduser()
        if gigabytes is None:
            text = os.environ.get("MED3D_STORE_GB") or str(DEFAULT_GB)
            try:
                gigabytes = float(text)
            except ValueError:
                gigabytes = math.nan
            if not gigabytes >= 0:
                raise InputError(f"MED3D_STORE_GB must be a number of gigabytes of at least 0, got '{text}'.")
        self.limit = GB * gigabytes
        self._began = time.time()
        # Both are shared with the worker processes, which live an epoch.
        self._warned = torch.zeros(1, dtype=torch.bool).share_memory_()
        if not _checked:
            _checked.append(torch.zeros(1 << 20, dtype=torch.bool).share_memory_())
        self._checked = _checked[0]

    def get(self, kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """An entry, memory-mapped; it is made and kept if it is missing or damaged.

        Args:
            kind: :data:`VOLUME` or :data:`ITEM`.
            key: all that the entry depends on.
            make: gives the entry: tensors, numbers, texts, and dicts and lists of them.
        """
        path = self.path(kind, key)
        mark = zlib.crc32(os.fsencode(path)) % len(self._checked)
        found = self._read(path, key, check=not self._checked[mark])
        if found is not None:
            self._checked[mark] = True
            return found
        made = make()
        self._write(path, key, made)
        return self._read(path, key, check=False) or made

    def path(self, kind: str, key: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{hashlib.sha256(f'{kind} {key}'.encode()).hexdigest()}.{kind}.pt"

    def image(self, path: str | os.PathLike) -> tuple[np.ndarray, Header, list[str]]:
        """:func:`med3d_ext.io.image_files.read_image`, each content decoded once; DICOM is read each time."""
        if is_dicom_input(path):
            return read_image(path)

        def decoded() -> dict[str, Any]:
            voxels, header = read_volume(path)
            facts = {"shape": list(header.shape), "affine": header.affine.tolist(), "spacing": list(header.spacing)}
            return {**facts, "is_oriented": header.is_oriented, "voxels": torch.from_numpy(compact(voxels))}

        found = self.get(VOLUME, f"{READER} {file_digest(path)}", decoded)
        header = Header(tuple(found["shape"]), np.array(found["affine"]), found["spacing"], bool(found["is_oriented"]))
        return np.array(found["voxels"].numpy(), dtype=np.float32, order="C"), header, []

    def _read(self, path: Path, key: str, check: bool) -> dict[str, Any] | None:
        """What is in an entry; None if it is not there, or, with a warning, if it is damaged."""
        try:
            if check:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError("a checksum is wrong")
            with config.patch({"load.mmap": True}):  # type: ignore[attr-defined]
                stored = torch.load(path, weights_only=True)
            if stored["key"] != key:
                raise ValueError("it belongs to something else")
            with suppress(OSError):
                os.utime(path)  # used now
            return dict(stored["entry"])
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever zipfile and torch make of a broken file
            fault = (str(error).splitlines() or [type(error).__name__])[0][:80]
            logger.warning(f"'{path}' is damaged ({fault}) and is made again")
            return None

    def _write(self, path: Path, key: str, entry: dict[str, Any]) -> None:
        temporary = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients' images: nobody else's to read
            with hold(self.folder / ".lock", place=self.folder):
                if not self._make_room(_size(entry), path):
                    return
            handle, name = tempfile.mkstemp(".part", "", self.folder)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:  # by its name, torch would write another file each time
                torch.save({"key": key, "entry": entry}, file)
            os.replace(temporary, path)
        except (OSError, RuntimeError, InputError) as error:  # torch hides what the disk said
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:80]
            self._warn(f"nothing can be kept in '{self.folder}' ({reason}): volumes are read again in each epoch")
        finally:
            if temporary is not None:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _make_room(self, size: float, new: Path) -> bool:
        """Remove what was used the longest time ago until ``size`` bytes fit; False, with a warning, if they cannot."""
        entries, total = [], size
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process removed it
                facts = path.stat()
                if path.suffix == ".part" and facts.st_mtime < time.time() - LEFTOVER:
                    path.unlink()
                elif path.suffix in (".pt", ".part") and path != new:
                    total += facts.st_size
                    entries.append((facts.st_mtime, facts.st_size, path))
        excess = max(total - self.limit, size + RESERVE - shutil.disk_usage(self.folder).free)
        for used_at, length, path in sorted(entries):
            if excess <= 0:
                break
            if path.suffix == ".pt" and (used_at < self._began or not path.name.endswith(f".{ITEM}.pt")):
                with suppress(OSError):
                    path.unlink()
                    excess -= length
        if excess > 0:
            self._warn(
                f"the volumes of this run do not fit into '{self.folder}' ({self.limit / GB:g} GB, or its disk is "
                "full): the rest is read again in each epoch; set MED3D_STORE_GB or --store_dir"
            )
        return excess <= 0

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned[0] = True
            logger.warning(text)


def _size(entry: Any) -> float:
    parts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list | tuple) else []
    return float(entry.nbytes) if isinstance(entry, torch.Tensor) else 1000.0 + math.fsum(map(_size, parts))


def compact(voxels: np.ndarray) -> np.ndarray:
    """The same values in fewer bytes, if they are whole numbers, as those of nearly all images are."""
    low, high = float(voxels.min()), float(voxels.max())
    for kind in (np.uint8, np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max and (voxels.astype(kind) == voxels).all():
            return voxels.astype(kind)
    return voxels


_in_use: list[Store] = []


def store_in_use() -> Store | None:
    """The store that :func:`used` names."""
    return _in_use[-1] if _in_use else None


@contextmanager
def used(store: Store | None) -> Iterator[None]:
    """Volumes that are read for a data set's facts meanwhile are kept in a store, whichever thread reads them."""
    _in_use.extend([store] if store else [])
    try:
        yield
    finally:
        del _in_use[len(_in_use) - bool(store) :]
