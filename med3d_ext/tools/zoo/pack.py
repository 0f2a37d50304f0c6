"""The verbs ``zoo pack`` and ``zoo index``: archives that ``monai.bundle download`` reads, and a zoo's list of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.tools.bundle_folder import find_bundle
from med3d_ext.tools.weights.release import EARLIEST
from med3d_ext.tools.zoo.stage import check_bundle, stage

INDEX = "models/model_info.json"
"""Where MONAI looks for a zoo's index, from the zoo's root."""

ARCHIVE = re.compile(r"(?P<name>\w+)_v(?P<version>\d+\.\d+\.\d+)\.zip")


DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError, NotADirectoryError)
"""What reading a broken archive raises."""


def pack(bundle: str, out: str, *, weights: str | None = None, overwrite: bool = False) -> str:
    """Write NAME_vVERSION.zip, which runs anywhere without this repository, and its SHA-256 next to it.

    The bundle is checked first. The archive contains one folder: configs, docs, this package, the weights as
    models/model.pt and models/model.safetensors, and what inference reads with them. Packing the same bundle again
    gives the same bytes.

    Args:
        bundle: a bundle's folder or name.
        out: the folder for the archive.
        weights: a weights file, or random. Defaults to the bundle's weights/model.pt, or else its models/model.pt.
        overwrite: replace an archive of this version that has different content.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return pack_staged(stage(find_bundle(bundle), Path(scratch), weights), Path(out), overwrite)


def pack_staged(staged: Path, out: Path, overwrite: bool = False) -> str:
    """Write the archive of a folder that :func:`~med3d_ext.tools.zoo.stage.stage` has made, and its SHA-256 next to it.

    Order, times and permissions do not depend on the machine: equal files give equal bytes (with one version of zlib).

    Args:
        staged: the folder; its name is that of the archive's one top folder.
        out: the folder for the archive.
        overwrite: replace an archive of this version that has different content. Defaults to False.

    Returns:
        what was written, in a line.

    Raises:
        InputError: there is an archive of this version with other bytes.
    """
    path = out / f"{staged.name}_v{check_bundle(staged)}.zip"
    new = staged.parent / path.name
    with zipfile.ZipFile(new, "w") as archive:
        for name in sorted(file.relative_to(staged).as_posix() for file in staged.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(f"{staged.name}/{name}", EARLIEST)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, (staged / name).read_bytes(), zipfile.ZIP_DEFLATED)
    sha256 = digest(new)
    if path.exists() and digest(path) != sha256 and not overwrite:
        raise InputError(
            f"'{path}' exists with other content; raise the version in configs/metadata.json, or --overwrite."
        )
    with open(new, "rb") as old, write_atomically(path) as target:
        shutil.copyfileobj(old, target)
    with write_atomically(path.with_name(f"{path.name}.sha256"), "w") as target:
        target.write(f"{sha256}  {path.name}\n")  # the form that `sha256sum --check` reads
    return f"'{path}': {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}"


def index(folder: str, *, url: str | None = None, overwrite: bool = False) -> str:
    """Write models/model_info.json, as MONAI's model zoo has it, over the archives NAME_vVERSION.zip of a folder.

    Args:
        folder: the folder with the archives; `zoo fetch` and a plain web server serve it as it is.
        url: the address where the archives will be, for MONAI's own downloader; by default they are relative to
            the folder.
        overwrite: accept versions that the index lists with different content.
    """
    root = Path(folder)
    found = {path: match for path in sorted(root.glob("*.zip")) if (match := ARCHIVE.fullmatch(path.name))}
    if not found:
        raise InputError(f"'{folder}' holds no archive NAME_vVERSION.zip; write some with `zoo pack`.")
    known = read_json(root / INDEX) if (root / INDEX).is_file() else {}
    entries = {}
    for path, match in found.items():
        with open_archive(path) as archive:
            try:
                version = json.loads(archive.read(f"{match['name']}/configs/metadata.json")).get("version")
            except (KeyError, ValueError, AttributeError) as error:
                fault = f"'{path}' is not a bundle's archive (configs/metadata.json: {error})"
                raise InputError(f"{fault}; move it.") from error
        if version != match["version"]:
            raise InputError(f"'{path}' holds version {version}; pack it again.")
        checksum = digest(path, "sha1")  # the model zoo's; ours is next to it
        if path.stem in known and known[path.stem].get("checksum") != checksum and not overwrite:
            raise InputError(
                f"'{root / INDEX}' lists {path.stem} with other content; raise its version, or --overwrite."
            )
        source = path.name if url is None else f"{url.rstrip('/')}/{path.name}"
        entries[path.stem] = {"checksum": checksum, "source": source, "sha256": digest(path)}
    with write_atomically(root / INDEX, "w") as file:
        file.write(json.dumps(entries, indent=4) + "\n")
    return "\n".join([f"'{root / INDEX}':", *(f"  {key}  {entry['source']}" for key, entry in entries.items())])


def digest(path: str | os.PathLike, kind: str = "sha256") -> str:
    """Hexadecimal digest of a file, ``sha256`` or ``sha1``."""
    found = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


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
