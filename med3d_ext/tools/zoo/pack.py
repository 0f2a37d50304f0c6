"""The verb ``zoo pack``: a bundle as the zip archive that ``monai.bundle download`` reads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.io.files import write_atomically
from med3d_ext.tools.bundle_folder import find_bundle
from med3d_ext.tools.zoo.archive import digest, write_archive
from med3d_ext.tools.zoo.checks import check_version
from med3d_ext.tools.zoo.stage import stage


def pack(bundle: str, out: str, *, weights: str | None = None, overwrite: bool = False) -> str:
    """Write NAME_vVERSION.zip, which runs anywhere without this repository, and its SHA-256 beside it.

    The bundle is checked first. The archive holds one folder: configs, docs, this package, the weights as
    models/model.pt and models/model.safetensors, and what inference reads beside them. Packing the same again gives
    the same bytes.

    Args:
        bundle: a bundle's folder or name.
        out: the folder for the archive.
        weights: a weights file, or random. By default the bundle's weights/model.pt, else its models/model.pt.
        overwrite: replace an archive of this version that has other bytes.
    """
    source = find_bundle(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        return pack_staged(stage(source, Path(scratch), weights), Path(out), overwrite)


def pack_staged(staged: Path, out: Path, overwrite: bool = False) -> str:
    """Write the archive of a folder that :func:`~med3d_ext.tools.zoo.stage.stage` has made, and its SHA-256 beside it.

    Args:
        staged: the folder.
        out: the folder for the archive.
        overwrite: replace an archive of this version that has other bytes. Defaults to False.

    Returns:
        what was written, in a line.

    Raises:
        InputError: there is an archive of this version with other bytes.
    """
    path = out / f"{staged.name}_v{check_version(staged)}.zip"
    new = staged.parent / path.name
    write_archive(staged, new)
    sha256 = digest(new)
    if path.exists() and digest(path) != sha256 and not overwrite:
        raise InputError(
            f"'{path}' exists with other content; raise the version in configs/metadata.json, or --overwrite."
        )
    out.mkdir(parents=True, exist_ok=True)
    with open(new, "rb") as old, write_atomically(path) as target:
        while block := old.read(1 << 20):
            target.write(block)
    os.unlink(new)
    with write_atomically(path.with_name(f"{path.name}.sha256"), "w") as target:
        target.write(f"{sha256}  {path.name}\n")  # the form that `sha256sum --check` reads
    return f"'{path}': {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}"
