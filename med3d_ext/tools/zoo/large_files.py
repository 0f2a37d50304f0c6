"""``large_files.yml``: files of a bundle that lie elsewhere, fetched with their hash."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.tools.zoo.archive import digest
from med3d_ext.tools.zoo.sources import download, is_url

NAMES = ("large_files.yml", "large_files.yaml", "large_files.json")


def fetch_large_files(bundle: Path) -> list[str]:
    """Fetch what a bundle's list names, unless it is there with the right hash.

    Args:
        bundle: the bundle's folder.

    Returns:
        the fetched files, from the folder.

    Raises:
        InputError: an entry lacks its SHA-256 or leaves the folder, or a file does not arrive or has another hash.
    """
    fetched = []
    for entry in read_list(bundle):
        path, sha256 = bundle / entry["path"], entry["hash_val"].lower()
        if path.is_file() and digest(path) == sha256:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        download(entry["url"], path)
        if digest(path) != sha256:
            raise InputError(f"'{entry['url']}' does not have the sha256 {sha256} of the bundle's list; do not use it.")
        fetched.append(entry["path"])
    return fetched


def read_list(bundle: Path) -> list[dict[str, str]]:
    """The checked entries of a bundle's list; none where it has no list."""
    paths = [bundle / name for name in NAMES if (bundle / name).is_file()]
    entries = [entry for path in paths for entry in _entries(path)]
    for entry in entries:
        path = PurePosixPath(entry.get("path", ""))
        if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in str(path) or ":" in str(path):
            raise InputError(f"'{paths[0].name}' would write outside the bundle ('{path}'); do not use it.")
        if not is_url(entry.get("url", "")):
            raise InputError(f"'{paths[0].name}' must give '{path}' an http(s) url, got '{entry.get('url')}'.")
        is_sha256 = re.fullmatch("[0-9a-fA-F]{64}", entry.get("hash_val", ""))
        if entry.get("hash_type", "sha256") != "sha256" or not is_sha256:
            raise InputError(f"'{paths[0].name}' has no sha256 for '{path}'; nobody can tell what arrives.")
    return entries


def _entries(path: Path) -> list[dict[str, str]]:
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"'{path.name}' needs the package PyYAML; `pip install pyyaml`.") from error
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = (content or {}).get("large_files") or []
        return [{str(key): str(value) for key, value in entry.items()} for entry in entries]
    except (yaml.YAMLError, AttributeError, ValueError) as error:
        raise InputError(
            f"'{path.name}' is no list of large files ({' '.join(str(error).split())}); repair it."
        ) from error
