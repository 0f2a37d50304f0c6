"""The training data set: normalized volumes cached on disk, and random transforms that a resumed run repeats."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing
from torch.utils.serialization import config

import med3d_ext
from med3d_ext.data.identity import FILES, check_content, item_digest

logger = logging.getLogger(__name__)

VERSION = f"1 {med3d_ext.__version__} {monai.__version__}"
"""Of the cache; its number is raised when a transform gives other voxels under the same parameters."""


class SeededDataset(PersistentDataset):
    """MONAI's PersistentDataset with memory-mapped files and randomness drawn from (seed, epoch, item).

    What an item looks like in an epoch depends on nothing else, so a run that is resumed after epoch k sees what an
    uninterrupted one would have seen, with any number of worker processes.

    A file of the cache is named after all that is in it: the content of the case's image, label and mask, what else the
    item states, the deterministic transforms with their parameters, and the version. So a corrected label or another
    window is computed anew, and a case that was moved is not. A file that is damaged is made again, with a warning.

    An index may be ``repeat * len(data) + case``: the case once more, with other random draws. Such indices come
    from :class:`med3d_ext.data.BalancedSampler`.

    Args:
        data: dataset items.
        transform: deterministic transforms, whose result is cached, then random ones.
        cache_dir: folder of the cache; None computes every item anew.
        seed: seed of the random transforms.

    Raises:
        InputError: when an item is read, a file is no longer what the item states.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | None = None, seed: int = 0
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_transform=pickle_hashing, track_meta=True)
        self.seed = seed
        self.epoch = 0
        # Which files of the cache were read to their checksums: shared with the worker processes, which live an epoch.
        self._checked = torch.zeros(len(data), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random draws the next items take."""
        self.epoch = epoch

    def before_random(self, index: int) -> dict[str, Any]:
        """An item as the deterministic transforms leave it, from the cache or into it."""
        return self._before_random(index)

    def _transform(self, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        self.transform.set_random_state(seed=int(state[0]))
        return self._post_transform(self._before_random(index % len(self.data)))

    def _before_random(self, case: int) -> dict[str, Any]:
        """The case after its deterministic transforms, from the cache if there is one."""
        item = self.data[case]
        if self.cache_dir is None:
            return dict(self._pre_transform(dict(item)))
        path = self._cache_file(item)
        stored = self._read(path, case) if path.is_file() else None
        if stored is None:
            check_content(item)
            result = self._pre_transform(dict(item))
            temporary = path.with_suffix(f".{os.getpid()}.part")  # in the same folder, so that the rename is atomic
            try:
                torch.save({key: _plain(value) for key, value in result.items()}, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            stored = _load(path)
        here = {key: item[key] for key in FILES if isinstance(item.get(key), str)}  # another copy may have been cached
        return {key: _restored(value, here.get(key)) for key, value in stored.items()}

    def _read(self, path: Path, case: int) -> dict[str, Any] | None:
        """What a file of the cache holds; None, with a warning, if it is damaged."""
        try:
            if not self._checked[case]:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError("a checksum is wrong")
                self._checked[case] = True
            return _load(path)
        except PermissionError:
            raise
        except Exception as error:  # whatever zipfile and torch make of a broken file
            fault = (str(error).splitlines() or [type(error).__name__])[0][:80]
            logger.warning(f"the cache file '{path}' is damaged ({fault}) and is made again")
            return None

    def _cache_file(self, item: dict[str, Any]) -> Path:
        content = f"{VERSION} {self.transform_hash} {item_digest(item)}"
        return Path(str(self.cache_dir)) / f"{hashlib.sha256(content.encode()).hexdigest()}.pt"


def _load(path: Path) -> dict[str, Any]:
    with config.patch({"load.mmap": True}):  # type: ignore[attr-defined]
        stored = torch.load(path, weights_only=True)
    return dict(stored)


def _restored(value: Any, path: str | None) -> Any:
    if not isinstance(value, dict):
        return path if path is not None and isinstance(value, str) else value
    return MetaTensor(**{**value, "meta": {"filename_or_obj": path or value["meta"]["filename_or_obj"]}})


def _plain(value: Any) -> Any:
    """A MetaTensor as its parts: the record of applied transforms holds classes that a safe load refuses."""
    if not isinstance(value, MetaTensor):
        return value
    return {"x": value.as_tensor(), "affine": value.affine, "meta": {"filename_or_obj": value.meta["filename_or_obj"]}}
