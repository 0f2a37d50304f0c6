"""The verbs ``zoo index`` and ``zoo fetch``: a zoo's list, and a bundle from it, checked before it is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, scratch_folder, write_atomically
from med3d_ext.tools.bundle_folder import METADATA
from med3d_ext.weights.files import digest, read_checkpoint

INDEX = "models/model_info.json"
"""Where MONAI looks for a zoo's index, from the zoo's root."""
ARCHIVE = re.compile(r"(?P<name>\w+)_v(?P<version>\d+\.\d+\.\d+)\.zip")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError, NotADirectoryError)
"""What reading a broken archive raises."""
TIMEOUT = 60  # seconds without a byte
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
PICKLES = (".pkl", ".pickle", ".joblib")
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")
NEEDS = "'{}' needs the package {}; `pip install \"med3d-ext[tools]\"`."


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
        with _open_archive(path) as archive:
            try:
                version = json.loads(archive.read(f"{match['name']}/{METADATA}")).get("version")
            except (KeyError, ValueError, AttributeError) as error:
                raise InputError(f"'{path}' is not a bundle's archive ({METADATA}: {error}); move it.") from error
        if version != match["version"]:
            raise InputError(f"'{path}' holds version {version}; pack it again.")
        checksum = digest(path, "sha1")  # the model zoo's; ours is next to it
        if path.stem in known and known[path.stem].get("checksum") != checksum and not overwrite:
            fault = f"'{root / INDEX}' lists {path.stem} with other content"
            raise InputError(f"{fault}; raise its version, or --overwrite.")
        source = path.name if url is None else f"{url.rstrip('/')}/{path.name}"
        entries[path.stem] = {"checksum": checksum, "source": source, "sha256": digest(path)}
    with write_atomically(root / INDEX, "w") as file:
        file.write(json.dumps(entries, indent=4) + "\n")
    return "\n".join([f"'{root / INDEX}':", *(f"  {key}  {entry['source']}" for key, entry in entries.items())])


def fetch(name: str, *, source: str, output: str = ".", version: str | None = None, sha256: str | None = None) -> str:
    """Fetch a bundle into OUTPUT/NAME, which must not exist yet.

    The bundle appears only once everything is checked: the archive's checksum, that it unpacks into its own folder,
    that its weights contain no code, and the hash of each large file. This shows that it arrived as it was published;
    a bundle's configs and Python files are programs, so fetch from people you trust.

    Args:
        name: the bundle, such as lits_coarse or lits_coarse_v0.1.0.
        source: a folder or an address with archives, as `zoo pack` and `zoo index` write them, or one archive.
        output: where the bundle's folder is written.
        version: defaults to the newest.
        sha256: the SHA-256 that the archive must have, if you know it from elsewhere.
    """
    plain, _, own = name.partition("_v")
    if not re.fullmatch(r"\w+", plain):
        raise InputError(f"name must be a bundle's, such as lits_coarse or lits_coarse_v0.1.0, got '{name}'.")
    if own and version not in (None, own):
        raise InputError(f"'{name}' and --version {version} disagree; give one of them.")
    name, version = plain, own or version
    target = Path(output).expanduser().absolute() / name
    root = next(folder for folder in target.parents if folder.exists())  # the output stays as it was if it fails
    with scratch_folder(target, root) as scratch:
        if target.exists() or target.is_symlink():
            raise InputError(f"'{target}' exists and stays as it is; give another --output, or move it away.")
        address, checksums = _find_offer(name, source, version, scratch)
        checksums |= {"sha256": sha256} if sha256 else {}
        if not checksums:
            raise InputError(f"'{address}' has no checksum next to it; give its --sha256, or have it indexed.")
        archive = _checked(_retrieve(address, scratch / f"{name}.zip"), checksums, address)
        named = ARCHIVE.fullmatch(address.replace("\\", "/").rpartition("/")[2])
        version = version or (named["version"] if named else None)
        bundle = _extract(archive, name, scratch)
        try:
            found = str(json.loads((bundle / METADATA).read_text(encoding="utf-8"))["version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the archive contains no bundle ({METADATA}: {error}); give another.") from error
        if version not in (None, found):
            raise InputError(f"the archive says that it is version {found}, not {version}; do not use it.")
        large = _fetch_large_files(bundle)
        _check_weights(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(bundle, target)
    also = f", with {', '.join(large)}" if large else ""
    return f"'{Path(output) / name}': {name} {found}, {' and '.join(sorted(checksums))} as published{also}"


def _find_offer(name: str, source: str, version: str | None, scratch: Path) -> tuple[str, dict[str, str]]:
    """The archive of a bundle: its path or address, and its checksums, ``sha256`` or ``sha1`` to hexadecimal digest.

    They are in the source's ``models/model_info.json`` (or ``model_info.json``), else in a ``.sha256`` file next to the
    archive. Without a version it is the newest. ``scratch`` is a folder for what is downloaded.
    """
    if not source.endswith(".zip"):
        if not _is_url(source) and not Path(source).is_dir():
            raise InputError(f"--source must be a folder or an address, and '{source}' is not a folder.")
        for file in (INDEX, os.path.basename(INDEX)):
            text = _read(_join(source, file), scratch)
            if text is not None:
                return _listed(name, source, version, text, _join(source, file))
        if _is_url(source) and version is None:
            raise InputError(f"'{source}' has no {INDEX}; say which --version, or give the archive's own address.")
        if not _is_url(source):
            archives = [match for path in Path(source).glob("*.zip") if (match := ARCHIVE.fullmatch(path.name))]
            found = [match["version"] for match in archives if match["name"] == name]
            version = version or max(found, key=_order, default="VERSION")
            if version not in found:
                raise InputError(f"'{source}' holds no {name}_v{version}.zip and no {INDEX}; give another folder.")
        source = _join(source, f"{name}_v{version}.zip")
    words = (_read(f"{source}.sha256", scratch) or "").split()
    return source, {"sha256": words[0]} if words else {}


def _listed(name: str, source: str, version: str | None, text: str, place: str) -> tuple[str, dict[str, str]]:
    """What a zoo's index, the ``text`` at ``place``, offers."""
    try:
        content = json.loads(text)
        entries = {key: {kind: str(value) for kind, value in entry.items()} for key, entry in content.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"'{place}' is not a zoo's index ({error}); write it with `zoo index`.") from error
    versions = {key.rpartition("_v")[2]: entry for key, entry in entries.items() if key.rpartition("_v")[0] == name}
    if not versions:
        raise InputError(f"'{source}' has no '{name}'; it has {', '.join(sorted(entries)) or 'nothing'}.")
    chosen = versions.get(version or max(versions, key=_order))
    if chosen is None:
        raise InputError(f"'{source}' has no version {version} of {name}; it has {', '.join(sorted(versions))}.")
    file = chosen.get("source", "")
    near = _join(source, file.rpartition("/")[2])
    is_here = not _is_url(file) or (not _is_url(source) and Path(near).is_file())  # a mirror needs no network
    checksums = {"sha256": chosen.get("sha256"), "sha1": chosen.get("checksum")}
    return near if is_here else file, {kind: value for kind, value in checksums.items() if value}


def _order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if _is_url(root) else os.path.join(root, name)


def _read(address: str, scratch: Path) -> str | None:
    """A small text file; None if there is none."""
    path = _retrieve(address, scratch / "text")
    return None if path is None else path.read_text(encoding="utf-8", errors="replace")


def _retrieve(address: str, path: Path) -> Path | None:
    """The file that ``address`` names, or what is downloaded from there to ``path``; None if there is none."""
    if not _is_url(address):
        return Path(address) if Path(address).is_file() else None
    try:
        from pooch import HTTPDownloader
        from requests import HTTPError
    except ImportError as error:
        raise InputError(NEEDS.format(address, "pooch")) from error
    try:
        HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 20)(address, path, None)
    except HTTPError as error:
        if error.response is not None and error.response.status_code in (404, 410):
            return None
        raise InputError(f"'{address}' cannot be fetched ({error}); check the address.") from error
    except OSError as error:  # those of requests, too
        raise InputError(f"'{address}' did not arrive whole ({error}); check address and network.") from error
    return path


def _checked(path: Path | None, checksums: dict[str, str], address: str) -> Path:
    """The file at ``path``, which came from ``address`` and must have these checksums."""
    if path is None:
        raise InputError(f"there is no '{address}'; check name, version and source.")
    for kind, expected in checksums.items():
        found = digest(path, kind)
        if found != expected.lower():
            raise InputError(f"'{address}' must have the {kind} {expected.lower()}, it has {found}; do not use it.")
    return path


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        raise InputError(f"'{path.name}' is damaged ({error}); fetch it again.") from error


def _leaves(name: str) -> bool:
    """Whether a path from elsewhere would be outside the folder that it belongs in, on any system."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name


def _extract(path: Path, name: str, folder: Path) -> Path:
    """Unpack a bundle's archive, which must hold the one folder ``name``, into ``folder``; returns the bundle's folder.

    Nothing is written if it is damaged, too large, or an entry would not be a plain file inside the bundle's folder.
    """
    with _open_archive(path) as archive:
        entries, seen = archive.infolist(), set()
        for entry in entries:
            file = entry.filename
            is_plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            for fault, holds in (
                ("would be written outside the bundle's folder", _leaves(file)),
                (f"is not in the one folder '{name}'", PurePosixPath(file).parts[:1] != (name,)),
                ("is a link, which may lead anywhere", not is_plain),
                ("is encrypted", entry.flag_bits & 1),
                ("is there twice", file.rstrip("/") in seen),
            ):
                if holds:
                    raise InputError(f"'{file}' in '{path.name}' {fault}; do not use this archive.")
            seen.add(file.rstrip("/"))
        needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
        if needed > max(100 * path.stat().st_size, 100_000_000):  # weights hardly shrink
            raise InputError(f"'{path.name}' unpacks to {needed / 1e9:.1f} GB, 100 times its size; do not use it.")
        if needed > free:
            raise InputError(f"'{path.name}' unpacks to {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")
        archive.extractall(folder)
    return folder / name


def _fetch_large_files(bundle: Path) -> list[str]:
    """Fetch what a bundle's ``large_files.yml`` names, unless it is there as listed; returns what was fetched."""
    fetched = []
    for entry in read_list(bundle):
        path, sha256 = bundle / entry["path"], entry["hash_val"].lower()
        if not path.is_file() or digest(path) != sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            _checked(_retrieve(entry["url"], path), {"sha256": sha256}, entry["url"])
            fetched.append(entry["path"])
    return fetched


def read_list(bundle: Path) -> list[dict[str, str]]:
    """The checked entries of a bundle's list of large files; none if it has no list.

    Raises:
        InputError: it is not a list, or an entry leaves the folder or lacks its address or its SHA-256.
    """
    checked = []
    for file in (bundle / name for name in LARGE_FILES if (bundle / name).is_file()):
        try:
            import yaml

            content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
            listed = (content or {}).get("large_files") or []
            entries = [{str(key): str(value) for key, value in entry.items()} for entry in listed]
        except ImportError as error:
            raise InputError(NEEDS.format(file.name, "PyYAML")) from error
        except (yaml.YAMLError, AttributeError, ValueError) as error:
            fault = " ".join(str(error).split())
            raise InputError(f"'{file.name}' is not a list of large files ({fault}); repair it.") from error
        for entry in entries:
            path, url = entry.get("path", ""), entry.get("url", "")
            if not PurePosixPath(path).parts or _leaves(path):
                raise InputError(f"'{file.name}' would write outside the bundle ('{path}'); do not use it.")
            if not _is_url(url):
                raise InputError(f"'{file.name}' must give '{path}' an http(s) url, got '{url}'.")
            is_sha256 = re.fullmatch("[0-9a-fA-F]{64}", entry.get("hash_val", ""))
            if entry.get("hash_type", "sha256") != "sha256" or not is_sha256:
                raise InputError(f"'{file.name}' has no sha256 for '{path}'; the file cannot be verified.")
        checked += entries
    return checked


def _check_weights(folder: Path) -> None:
    """Raise InputError if a weights file of ``folder`` is damaged or holds code; none of it is run."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix in PICKLES:
            raise InputError(f"'{name}' is a plain pickle, which may contain code; do not use this bundle.")
        if path.suffix in WEIGHTS:
            try:
                read_checkpoint(path)
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error
