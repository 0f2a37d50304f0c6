"""The verb ``zoo fetch``: a bundle from a folder or an address, checked before it is there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.tools.zoo.archive import digest, extract
from med3d_ext.tools.zoo.large_files import fetch_large_files
from med3d_ext.tools.zoo.sources import download, find_offer
from med3d_ext.weights.files import read_checkpoint

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
PICKLES = (".pkl", ".pickle", ".joblib")


def fetch(name: str, *, source: str, output: str = ".", version: str | None = None, sha256: str | None = None) -> str:
    """Fetch a bundle into OUTPUT/NAME, where there must be none yet.

    Nothing is there before all of it is checked: the archive's checksum, that it unpacks into its own folder, that its
    weights hold no code, and the hash of each large file. This shows that what arrives is what was published; a
    bundle's configs and Python files are programs, so fetch from people whom you trust.

    Args:
        name: the bundle, such as lits_coarse or lits_coarse_v0.1.0.
        source: a folder or an address with archives, as `zoo pack` and `zoo index` write them, or one archive.
        output: where the bundle's folder comes to lie.
        version: by default the newest.
        sha256: the SHA-256 that the archive must have, where you know it from elsewhere.
    """
    name, version = _split(name, version)
    target = Path(output).expanduser() / name
    if target.exists() or target.is_symlink():
        raise InputError(f"'{target}' exists and stays as it is; give another --output, or move it away.")
    offer = find_offer(name, source, version)
    checksums = {**offer.checksums, **({"sha256": sha256.lower()} if sha256 else {})}
    if not checksums:
        raise InputError(f"'{offer.address}' has no checksum beside it; give its --sha256, or have it indexed.")
    with _scratch(target.parent) as scratch:
        archive = scratch / f"{name}.zip"
        download(offer.address, archive)
        check_sums(archive, checksums, offer.address)
        folder = extract(archive, name, scratch)
        archive.unlink()
        version = _check_metadata(folder, version)
        large = fetch_large_files(folder)
        check_weights(folder)
        os.rename(folder, target)
    also = f", with {', '.join(large)}" if large else ""
    return f"'{target}': {name} {version}, {' and '.join(sorted(checksums))} as published{also}"


def _split(name: str, version: str | None) -> tuple[str, str | None]:
    plain, _, own = name.partition("_v")
    if not re.fullmatch(r"\w+", plain):
        raise InputError(f"name must be a bundle's, such as lits_coarse or lits_coarse_v0.1.0, got '{name}'.")
    if own and version not in (None, own):
        raise InputError(f"'{name}' and --version {version} disagree; give one of them.")
    return plain, own or version


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` that is gone afterwards, and so is ``folder`` where it was made in vain."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            yield Path(scratch)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty: the bundle arrived
                folder.rmdir()


def check_sums(path: Path, checksums: Mapping[str, str], address: str) -> None:
    """Raise InputError where the file at ``path``, which came from ``address``, has another checksum."""
    for kind, expected in checksums.items():
        found = digest(path, kind)
        if found != expected.lower():
            raise InputError(f"'{address}' must have the {kind} {expected}, it has {found}; do not use it.")


def _check_metadata(folder: Path, version: str | None) -> str:
    """The version that a bundle's folder says it has."""
    try:
        found = str(json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the archive holds no bundle (configs/metadata.json: {error}); give another.") from error
    if version is not None and found != version:
        raise InputError(f"the archive says that it is version {found}, not {version}; do not use it.")
    return found


def check_weights(folder: Path) -> None:
    """Raise InputError where a weights file of ``folder`` is damaged or holds code; none of it is run."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix in PICKLES:
            raise InputError(f"'{name}' is a plain pickle, which may hold code; do not use this bundle.")
        if path.suffix in WEIGHTS:
            try:
                read_checkpoint(path)
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error
