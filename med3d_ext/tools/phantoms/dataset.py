"""The embedded data: phantom patients made on the spot, so that every bundle runs on a fresh machine.

Phantoms teach a network nothing about patients. They show that a pipeline works: shapes, contrast, spacing and
orientation differ from case to case, and no threshold finds an organ.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.tools.phantoms.kinds import KINDS

VERSION = 4  # raised whenever the voxels of a seed change, so that old caches are left alone
MARK = "phantoms.json"


def phantom_dataset(
    kind: str, folder: str | os.PathLike | None = None, cases: int | None = None, seed: int = 0
) -> Path:
    """Folder of a generated data set; written on the first call, found again on later ones.

    Args:
        kind: "lits" (torso CT: liver and tumor), "3dseg8" (eight small Decathlon folders; the four CT ones share
            their scans and label one organ each), "lung" (chests in CT and MR contrast: right and left lung) or
            "nodules" (cubes of 1 mm around a nodule with a malignancy of 1 to 5).
        folder: where to write: new, empty, or written by the same call before. Defaults to
            ``$MED3D_CACHE/phantoms/...``, where ``MED3D_CACHE`` defaults to ``~/.cache/med3d_ext``.
        cases: number of cases, for "3dseg8" in each domain. Defaults to 12, 6, 12 and 160 in the order of the kinds.
        seed: the same seed gives the same voxels, and case number i is the same whatever the number of cases.

    Returns:
        The folder, complete: an interrupted write leaves nothing, and two processes may call at once.

    Raises:
        ValueError: when ``kind`` is unknown or ``cases`` is below 1.
        InputError: when ``folder`` holds something else or cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got '{kind}'.")
    write, default_cases = KINDS[kind]
    cases = default_cases if cases is None else cases
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}.")
    cache = os.environ.get("MED3D_CACHE") or Path("~/.cache/med3d_ext").expanduser()
    target = Path(folder or Path(cache) / "phantoms" / f"{kind}-{cases}-{seed}-v{VERSION}").absolute()
    mark = {"kind": kind, "cases": cases, "seed": seed, "version": VERSION}
    if not _is_complete(target, mark):
        _write_once(target, mark, lambda scratch: write(scratch, cases, seed))
    return target


def _is_complete(target: Path, mark: dict) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if (target / MARK).is_file() and json.loads((target / MARK).read_text()) == mark:
        return True
    raise InputError(f"'{target}' holds something else than these phantoms; give a new or an empty folder.")


def _write_once(target: Path, mark: dict, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that whoever sees the target sees all of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"'{target}' cannot be written ({error.strerror}); set MED3D_CACHE to a folder of yours."
        ) from error
    try:
        write(scratch)
        (scratch / MARK).write_text(json.dumps(mark) + "\n")
        scratch.chmod(0o755)
        _publish(scratch, target, mark)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, target: Path, mark: dict) -> None:
    try:
        os.replace(scratch, target)  # onto nothing or an empty folder
    except OSError:
        if not _is_complete(target, mark):  # another process may have been faster, which is as good
            raise
