"""Fetching the Decathlon's tasks with MONAI's downloader."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from monai.apps import DecathlonDataset, download_and_extract

from med3d_ext.errors import InputError
from med3d_ext.io.files import hold, lock_elsewhere

logger = logging.getLogger("med3d_ext.prepare")


def download_tasks(folder: str | os.PathLike, tasks: Iterable[str]) -> None:
    """Bring tasks of the Medical Segmentation Decathlon into a folder; those that are there already stay as they are.

    Each archive is checked by MONAI's MD5 sum and unpacked next to its place, so that an interrupted call leaves no
    half-filled task; a complete archive is not fetched again.

    Args:
        folder: where the tasks' folders come to lie.
        tasks: names such as ``Task04_Hippocampus``.

    Raises:
        InputError: when an archive cannot be fetched or is damaged.
    """
    root = Path(folder)
    for task in tasks:
        if not (root / task).exists():
            with hold(lock_elsewhere(root), place=root):
                _download(root, task)


def _download(root: Path, task: str) -> None:
    if (root / task).exists():
        return  # another process has fetched it meanwhile
    scratch = root / ".download"
    scratch.mkdir(parents=True, exist_ok=True)
    archive = scratch / f"{task}.tar"
    url, md5 = DecathlonDataset.resource[task], DecathlonDataset.md5[task]
    logger.info(f"fetching {task} from {url}")
    shutil.rmtree(scratch / task, ignore_errors=True)
    try:
        download_and_extract(url, archive, scratch, hash_val=md5, hash_type="md5", progress=False)
    except Exception as error:  # the downloader raises OSError, RuntimeError and its own
        raise InputError(f"{task} cannot be fetched from {url} ({error}); try again, or put it there.") from error
    os.replace(scratch / task, root / task)
    shutil.rmtree(scratch, ignore_errors=True)
