"""Where an archive lies and which checksums it must have: in a folder, or under an address."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO

from med3d_ext.errors import InputError
from med3d_ext.tools.zoo.index import ARCHIVE, INDEX

TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Offer:
    """An archive that a source offers.

    Attributes:
        address: a path, or ``http(s)://...``.
        checksums: kind (``sha256``, ``sha1``) to hexadecimal digest.
    """

    address: str
    checksums: dict[str, str] = field(default_factory=dict)


def find_offer(name: str, source: str, version: str | None) -> Offer:
    """The archive of a bundle.

    Args:
        name: the bundle.
        source: a folder or an address with archives, with ``models/model_info.json`` (or ``model_info.json``) or
            ``.sha256`` files beside the archives; or an archive itself.
        version: such as `0.1.0`, or None for the newest.

    Raises:
        InputError: the source cannot be reached or does not offer it.
    """
    if source.endswith(".zip"):
        return _with_own_checksum(source)
    if not is_url(source) and not Path(source).is_dir():
        raise InputError(f"--source must be a folder or an address, and '{source}' is no folder.")
    for index in (INDEX, os.path.basename(INDEX)):
        text = read_text(join(source, index))
        if text is not None:
            return _listed(name, source, version, _entries(text, join(source, index)))
    if not is_url(source):
        return _with_own_checksum(str(_newest(name, source, version)))
    if version is None:
        raise InputError(f"'{source}' has no {INDEX}; say which --version, or give the archive's own address.")
    return _with_own_checksum(join(source, f"{name}_v{version}.zip"))


def is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


def _entries(text: str, address: str) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(text)
        return {key: {name: str(value) for name, value in entry.items()} for key, entry in content.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"'{address}' is no index of a zoo ({error}); write it with `zoo index`.") from error


def _listed(name: str, source: str, version: str | None, entries: dict[str, dict[str, str]]) -> Offer:
    versions = {key.rpartition("_v")[2]: entry for key, entry in entries.items() if key.rpartition("_v")[0] == name}
    if not versions:
        raise InputError(f"'{source}' has no '{name}'; it has {', '.join(sorted(entries)) or 'nothing'}.")
    chosen = versions.get(version or max(versions, key=_order))
    if chosen is None:
        raise InputError(f"'{source}' has no version {version} of {name}; it has {', '.join(sorted(versions))}.")
    checksums = {"sha256": chosen.get("sha256", ""), "sha1": chosen.get("checksum", "")}
    file = chosen.get("source", "")
    beside = join(source, file.rpartition("/")[2])
    is_here = not is_url(file) or (not is_url(source) and Path(beside).is_file())  # a mirror needs no network
    return Offer(beside if is_here else file, {kind: value for kind, value in checksums.items() if value})


def _order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _newest(name: str, folder: str, version: str | None) -> Path:
    found = {}
    for path in Path(folder).glob("*.zip"):
        match = ARCHIVE.fullmatch(path.name)
        if match and match["name"] == name and version in (None, match["version"]):
            found[match["version"]] = path
    if not found:
        wanted = f"{name}_v{version or 'VERSION'}.zip"
        raise InputError(f"'{folder}' holds no {wanted} and no {INDEX}; give another folder.")
    return found[max(found, key=_order)]


def _with_own_checksum(address: str) -> Offer:
    text = read_text(f"{address}.sha256")
    return Offer(address, {"sha256": text.split()[0]} if text and text.split() else {})


def read_text(address: str) -> str | None:
    """A small text file; None where there is none.

    Raises:
        InputError: the address does not answer.
    """
    try:
        with open_address(address) as stream:
            return stream.read(1 << 22).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def download(address: str, path: Path) -> None:
    """Copy a file from a path or an address.

    Raises:
        InputError: it is not there, or it did not arrive whole.
    """
    try:
        with open_address(address) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            expected = getattr(source, "length", None)  # of an answer: the bytes that are still to come
    except FileNotFoundError as error:
        raise InputError(f"there is no '{address}'; check name, version and source.") from error
    except (OSError, HTTPException) as error:
        raise InputError(f"'{address}' did not arrive whole ({error}); try again.") from error
    if expected:
        raise InputError(f"'{address}' did not arrive whole ({expected} bytes are missing); try again.")


def open_address(address: str) -> IO[bytes]:
    """Open a file or an address for reading; FileNotFoundError where there is none, InputError where nobody answers."""
    if not is_url(address):
        return open(address, "rb")
    try:
        return urllib.request.urlopen(address, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(address) from error
        raise InputError(f"'{address}' cannot be fetched ({error}); check the address.") from error
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"'{address}' cannot be fetched ({error}); check address and network.") from error
