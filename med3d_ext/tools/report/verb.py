"""The verb ``report``: what a run left behind, on one page that can be sent to a colleague."""

from __future__ import annotations

from pathlib import Path

from med3d_ext.errors import InputError
from med3d_ext.io.files import write_atomically
from med3d_ext.tools.bundle_folder import find_bundle
from med3d_ext.tools.report.page import report_page

RECORD = "run.json"


def report(run: str) -> str:
    """Write report.html into the folder of a run: figures with intervals, curves, overlays, cases, origin.

    The page contains its pictures and needs no other file. You can write it at any time, even during the training.

    Args:
        run: the output_dir of a training, or a bundle's folder or name, which means its eval folder.
    """
    folder = _folder_of(run)
    page = report_page(folder)
    with write_atomically(folder / "report.html", "w") as file:
        file.write(page)
    return str(folder / "report.html")


def _folder_of(run: str) -> Path:
    folder = Path(run).expanduser()
    if not (folder / RECORD).is_file():
        if folder.is_dir() and not (folder / "configs").is_dir():
            raise InputError(f"'{folder}' has no {RECORD}; give the output_dir of a training, or a bundle.")
        folder = find_bundle(run) / "eval"
    if not (folder / RECORD).is_file():
        raise InputError(f"'{folder}' has no {RECORD}; train the bundle first, or give the training's output_dir.")
    return folder
