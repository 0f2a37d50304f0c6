"""Logits of whole volumes turned into label maps, a slab at a time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

VOXELS = 4_000_000


class LogitsToLabelMapd(MapTransform):
    """Argmax over the channels as uint8.

    MONAI's AsDiscrete computes indices of 8 bytes for the whole volume and keeps 4 of them; this needs one byte for
    each voxel. Ties go to the first channel.

    Args:
        keys: keys of logits (classes, X, Y, Z), of at most 256 classes.
        allow_missing_keys: pass over absent keys.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            logits = item[key]
            labels = label_map(logits.as_tensor() if isinstance(logits, MetaTensor) else torch.as_tensor(logits))
            item[key] = MetaTensor(labels).copy_meta_from(logits) if isinstance(logits, MetaTensor) else labels
        return item


def label_map(logits: torch.Tensor) -> torch.Tensor:
    """Channel with the largest logit (1, X, Y, Z), uint8, of logits (classes, X, Y, Z)."""
    labels = torch.empty((1, *logits.shape[1:]), dtype=torch.uint8, device=logits.device)
    step = max(1, VOXELS // max(1, logits[0, 0].numel()))
    for first in range(0, logits.shape[1], step):
        slab = slice(first, first + step)
        labels[0, slab] = _argmax(logits[:, slab])
    return labels


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """Channel by channel: torch's own argmax over the first axis takes a hundred times as long on a CPU."""
    best = logits[0]
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    for channel in range(1, logits.shape[0]):
        larger = logits[channel] > best
        labels[larger] = channel
        if channel + 1 < logits.shape[0]:
            best = torch.maximum(best, logits[channel])
    return labels
