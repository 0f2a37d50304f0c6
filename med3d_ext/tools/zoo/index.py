"""The verb ``zoo index``: the list of a folder's archives, in the form of MONAI's model zoo."""

from __future__ import annotations

import json
import re
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.tools.zoo.archive import digest, open_archive

INDEX = "models/model_info.json"
"""Where MONAI looks for a zoo's index, from the zoo's root."""

ARCHIVE = re.compile(r"(?P<name>\w+)_v(?P<version>\d+\.\d+\.\d+)\.zip")


def index(folder: str, *, url: str | None = None, overwrite: bool = False) -> str:
    """Write models/model_info.json over the archives NAME_vVERSION.zip of a folder.

    Args:
        folder: the folder with the archives; `zoo fetch` and a plain web server serve it as it is.
        url: the address where the archives will lie, for MONAI's own downloader; by default they are named from the
            folder.
        overwrite: take versions that the index lists with other content.
    """
    root = Path(folder)
    found = {path: match for path in sorted(root.glob("*.zip")) if (match := ARCHIVE.fullmatch(path.name))}
    if not found:
        raise InputError(f"'{folder}' holds no archive NAME_vVERSION.zip; write some with `zoo pack`.")
    entries = {path.stem: _entry(path, match["name"], match["version"], url) for path, match in found.items()}
    known = read_json(root / INDEX) if (root / INDEX).is_file() else {}
    for key, entry in entries.items():
        if key in known and known[key].get("checksum") != entry["checksum"] and not overwrite:
            raise InputError(f"'{root / INDEX}' lists {key} with other content; raise its version, or --overwrite.")
    with write_atomically(root / INDEX, "w") as file:
        file.write(json.dumps(entries, indent=4) + "\n")
    return "\n".join([f"'{root / INDEX}':", *(f"  {key}  {entry['source']}" for key, entry in entries.items())])


def _entry(path: Path, name: str, version: str, url: str | None) -> dict[str, str]:
    """The zoo's checksum is SHA-1; ours stands beside it."""
    with open_archive(path) as archive:
        try:
            metadata = json.loads(archive.read(f"{name}/configs/metadata.json"))
        except (KeyError, ValueError) as error:
            raise InputError(f"'{path}' is no bundle's archive (configs/metadata.json: {error}); move it.") from error
    if metadata.get("version") != version:
        raise InputError(f"'{path}' holds version {metadata.get('version')}; pack it again.")
    source = path.name if url is None else f"{url.rstrip('/')}/{path.name}"
    return {"checksum": digest(path, "sha1"), "source": source, "sha256": digest(path)}
