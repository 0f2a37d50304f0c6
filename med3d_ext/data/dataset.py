"""The training data set: normalized volumes cached on disk, and random transforms that a resumed run repeats."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing
from torch.utils.serialization import config


class SeededDataset(PersistentDataset):
    """MONAI's PersistentDataset with memory-mapped files and randomness drawn from (seed, epoch, item).

    What an item looks like in an epoch depends on nothing else, so a run that is resumed after epoch k sees what an
    uninterrupted one would have seen, with any number of worker processes.

    An index may be ``repeat * len(data) + case``: the case once more, with other random draws. Such indices come
    from :class:`med3d_ext.data.BalancedSampler`.

    Args:
        data: dataset items.
        transform: deterministic transforms, whose result is cached, then random ones.
        cache_dir: folder of the cache; None computes every item anew.
        seed: seed of the random transforms.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | None = None, seed: int = 0
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_transform=pickle_hashing, track_meta=True)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random draws the next items take."""
        self.epoch = epoch

    def before_random(self, index: int) -> dict[str, Any]:
        """An item as the deterministic transforms leave it, from the cache or into it."""
        return dict(self._cachecheck(self.data[index]))

    def _transform(self, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        self.transform.set_random_state(seed=int(state[0]))
        return super()._transform(index % len(self.data))

    def _cachecheck(self, item_transformed: dict[str, Any]) -> Any:
        if self.cache_dir is None:
            return super()._cachecheck(item_transformed)
        path = self._cache_file(item_transformed)
        if not path.is_file():
            result = self._pre_transform(dict(item_transformed))
            temporary = path.with_suffix(f".{os.getpid()}.part")  # beside the target, so that the rename is atomic
            try:
                torch.save({key: _plain(value) for key, value in result.items()}, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        with config.patch({"load.mmap": True}):  # type: ignore[attr-defined]
            stored = torch.load(path, weights_only=True)
        return {key: MetaTensor(**value) if isinstance(value, dict) else value for key, value in stored.items()}

    def _cache_file(self, item: dict[str, Any]) -> Path:
        name = self.hash_func(item).decode() + self.transform_hash
        return Path(str(self.cache_dir)) / f"{name}.pt"


def _plain(value: Any) -> Any:
    """A MetaTensor as its parts: the record of applied transforms holds classes that a safe load refuses."""
    if not isinstance(value, MetaTensor):
        return value
    return {"x": value.as_tensor(), "affine": value.affine, "meta": {"filename_or_obj": value.meta["filename_or_obj"]}}
