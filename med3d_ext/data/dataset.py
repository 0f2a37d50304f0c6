"""The training data set: normalized volumes kept on disk, and random transforms that a resumed run repeats."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import monai
import numpy as np
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing

import med3d_ext
from med3d_ext.data.identity import FILES, check_content, item_digest
from med3d_ext.io.store import ITEM, Store
from med3d_ext.transforms.sampling import NO_TARGET, target_box

VERSION = f"1 {med3d_ext.__version__} {monai.__version__}"
"""Of what is kept; its number is raised when a transform gives other voxels under the same parameters."""


class SeededDataset(PersistentDataset):
    """MONAI's PersistentDataset with memory-mapped files and randomness drawn from (seed, epoch, item).

    What an item looks like in an epoch depends on nothing else, so a run that is resumed after epoch k sees what an
    uninterrupted one would have seen, with any number of worker processes.

    An entry of the store is named after all that is in it: the content of the case's image, label and mask, what else
    the item states, the deterministic transforms with their parameters, and the version. So a corrected label or
    another window is computed anew, and a case that was moved is not.

    An index may be ``repeat * len(data) + case``: the case once more, with other random draws. Such indices come
    from :class:`med3d_ext.data.BalancedSampler`.

    Args:
        data: dataset items.
        transform: deterministic transforms, whose result is kept, then random ones.
        cache_dir: where results are kept: a :class:`~med3d_ext.io.store.Store`, or a folder, which may then grow
            without limit; None computes every item anew.
        seed: seed of the random transforms.

    Raises:
        InputError: when an item is read, a file is no longer what the item states.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | Store | None = None, seed: int = 0
    ) -> None:
        super().__init__(data, transform, None, hash_transform=_hash_of, track_meta=True)
        self.store = Store(cache_dir, math.inf) if isinstance(cache_dir, str | os.PathLike) else cache_dir
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random draws the next items take."""
        self.epoch = epoch

    def before_random(self, index: int) -> dict[str, Any]:
        """An item as the deterministic transforms leave it, from the store or into it."""
        return self._before_random(index)

    def _transform(self, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        self.transform.set_random_state(seed=int(state[0]))
        return self._post_transform(self._before_random(index % len(self.data)))

    def _before_random(self, case: int) -> dict[str, Any]:
        """The case after its deterministic transforms, from the store if there is one."""
        item = self.data[case]
        if self.store is None:
            return dict(self._pre_transform(dict(item)))

        def make() -> dict[str, Any]:
            check_content(item)
            made = self._pre_transform(dict(item))
            if isinstance(label := made.get("label"), MetaTensor) and "target_box" not in made:
                # searched once, not at every draw
                made["target_box"] = [list(map(int, corner)) for corner in target_box(label) or NO_TARGET]
            return {key: _plain(value) for key, value in made.items()}

        stored = self.store.get(ITEM, f"{VERSION} {self.transform_hash} {item_digest(item)}", make)
        here = {key: item[key] for key in FILES if isinstance(item.get(key), str)}  # another copy may have been read
        return {key: _restored(value, here.get(key)) for key, value in stored.items()}

    def set_data(self, data: Sequence[dict[str, Any]]) -> None:
        """Other items; what is kept of these stays, since others use it."""
        self.data = data


def _hash_of(transforms: Sequence[Any]) -> bytes:
    """Of the transforms with their parameters, wherever files are kept."""
    copies = [copy.copy(each) for each in transforms]
    for each in copies:
        vars(each).pop("store", None)
    return bytes(pickle_hashing(copies))


def _restored(value: Any, path: str | None) -> Any:
    if not isinstance(value, dict):
        return path if path is not None and isinstance(value, str) else value
    return MetaTensor(**{**value, "meta": {"filename_or_obj": path or value["meta"]["filename_or_obj"]}})


def _plain(value: Any) -> Any:
    """A MetaTensor as its parts: the record of applied transforms holds classes that a safe load refuses."""
    if not isinstance(value, MetaTensor):
        return value
    return {"x": value.as_tensor(), "affine": value.affine, "meta": {"filename_or_obj": value.meta["filename_or_obj"]}}
