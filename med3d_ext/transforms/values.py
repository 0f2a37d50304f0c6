"""What voxels mean: labels as whole numbers and classes, logits as label maps, intensities as networks take them."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import ClipIntensityPercentiles, MapLabelValue, MapTransform, NormalizeIntensity
from monai.utils import convert_to_dst_type, convert_to_tensor

from med3d_ext.errors import InputError

logger = logging.getLogger(__name__)
ROUNDING = 1e-3
"""How far a stored value may be from a whole number: files that state a slope come so."""
VOXELS = 4_000_000  # of a slab that is turned into labels at once


def value_of(argument: str, value: Any, item: Mapping[Hashable, Any]) -> Any:
    """``value`` itself, or the entry of the item's ``domain`` if ``value`` is a table of domains; else a KeyError.

    An item without a domain, as a labelling tool sends it, takes the entry of a table that has a single one.
    """
    if not isinstance(value, Mapping):
        return value
    name = item.get("domain")
    if name is None and len(value) == 1:
        return next(iter(value.values()))
    if name not in value:
        raise KeyError(f"{argument} must have an entry for the item's domain, one of {list(value)}, got {name!r}.")
    return value[name]


def whole_values(voxels: np.ndarray, path: Any, what: str = "label") -> np.ndarray:
    """The voxels of a label map as whole numbers of at least 0, in their own type.

    Raises:
        InputError: a value of ``what`` in ``path`` is negative, or further than 1e-3 from a whole number.
    """
    whole = np.rint(voxels)
    for plane, rounded in zip(voxels, whole):  # the difference of a whole-body label would take as much memory again
        wrong = np.abs(plane - rounded) > ROUNDING + 1e-6
        if wrong.any():
            raise InputError(
                f"{what} '{path}' holds the value {plane[wrong].flat[0]:.4g}, which is not a whole number; "
                "give a map of classes that was neither interpolated nor made of probabilities."
            )
        if (rounded < 0).any():
            raise InputError(
                f"{what} '{path}' holds the negative value {rounded.min():.0f}; give a label map with values from 0."
            )
    return whole


class MergeLabelsd(MapTransform):
    """MONAI's MapLabelValue with the table of the item's domain: liver and its tumor become one class, for example.

    The paper's targets are liver, pancreas and vessel as its table 1 names them; ``prepare 3dseg8`` writes each
    domain's table into ``facts.json``. Type and geometry of the label stay.

    Args:
        keys: keys of labels.
        label_map: value in the file to class, or a table from an item's ``domain`` to such a map. Keys may be text, as
            JSON has them.

    Raises:
        InputError: a label holds a larger value than the map names.
        KeyError: when the table lacks the item's domain.
    """

    def __init__(self, keys: KeysCollection, label_map: Mapping[Any, Any], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        per_domain = any(isinstance(value, Mapping) for value in label_map.values())
        self.maps: Any = {name: _mapper(each) for name, each in label_map.items()} if per_domain else _mapper(label_map)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        largest, mapper = value_of("label_map", self.maps, item)
        for key in self.key_iterator(item):
            if item[key].max() > largest:
                where = getattr(item[key], "meta", {}).get("filename_or_obj")
                raise InputError(
                    f"label '{where}' holds the value {item[key].max():.0f}, the classes end at {largest}; correct one."
                )
            if mapper is not None:
                item[key] = convert_to_dst_type(mapper(item[key]), item[key])[0]
        return item


def _mapper(label_map: Mapping[Any, Any]) -> tuple[int, MapLabelValue | None]:
    """The largest value of the map, and what changes values; None if none changes."""
    changed = {int(value): int(target) for value, target in label_map.items() if int(value) != int(target)}
    mapper = MapLabelValue(list(changed), list(changed.values())) if changed else None
    return max(map(int, label_map)), mapper


class LogitsToLabelMapd(MapTransform):
    """Argmax over the channels as uint8, a slab at a time. Ties go to the first channel.

    MONAI's AsDiscrete computes indices of 8 bytes for the whole volume and keeps 4 of them; this needs one byte for
    each voxel.

    Args:
        keys: keys of logits (classes, X, Y, Z), of at most 256 classes.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            logits = convert_to_tensor(item[key], track_meta=False)
            labels = torch.zeros((1, *logits.shape[1:]), dtype=torch.uint8, device=logits.device)
            step = max(1, VOXELS // max(1, logits[0, 0].numel()))
            # Channel by channel: torch's own argmax over the first axis takes a hundred times as long on a CPU.
            for slab, found in zip(logits.split(step, dim=1), labels[0].split(step)):
                best = slab[0]
                for channel in range(1, len(slab)):
                    found[slab[channel] > best] = channel
                    best = torch.maximum(best, slab[channel])
            item[key] = MetaTensor(labels).copy_meta_from(item[key]) if isinstance(item[key], MetaTensor) else labels
        return item


class PercentileNormalized(MapTransform):
    """Clip to the 0.5 and 99.5 percentile of the volume, then z-score of the volume (paper, section 3.1).

    A fixed range may be clipped first. CTs that were stored within [-125, 275] HU and CTs of the full range then give
    the same input, where percentiles alone would give inputs of another scale. A volume of one value becomes 0.

    Args:
        keys: keys of channel-first volumes; each channel is normalized by itself.
        lower: lower percentile, 0 to 100.
        upper: upper percentile, 0 to 100.
        intensity_range: lowest and highest value to keep, or None; or a table from an item's ``domain`` to either,
            as ``facts.json`` holds them.

    Raises:
        ValueError: when percentiles or a range are not ascending.
        KeyError: when the table lacks the item's domain.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        intensity_range: Sequence[float] | Mapping[str, Sequence[float] | None] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for limits in intensity_range.values() if isinstance(intensity_range, Mapping) else [intensity_range]:
            if limits is not None and (len(limits) != 2 or limits[0] >= limits[1]):
                raise ValueError(f"intensity_range must be [lowest, highest], got {limits!r}.")
        self.intensity_range = intensity_range
        self.clip = ClipIntensityPercentiles(lower=lower, upper=upper)
        self.normalize = NormalizeIntensity()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        limits = value_of("intensity_range", self.intensity_range, item)
        for key in self.key_iterator(item):
            volume = convert_to_tensor(item[key], dtype=torch.float32, track_meta=True)
            volume = volume if limits is None else volume.clamp(*limits)
            # MONAI's own channel_wise copies once more, which a large CT of one channel need not pay for.
            channels: list[Any] = [self.normalize(self.clip(channel)) for channel in volume.split(1)]
            item[key] = channels[0] if len(channels) == 1 else torch.cat(channels)
        return item


class HUWindowd(MapTransform):
    """Clip to a window and scale it to [-1, 1]: MONAI's ScaleIntensityRange with half its memory, bit for bit.

    Of a CT of 512 x 512 x 800 MONAI's holds four copies at once, 3.4 GB.

    Args:
        keys: keys of volumes.
        hu_window: lowest and highest value (HU) that the network distinguishes.
        expected_below: warn of a volume without any value below this; every CT holds fat, if not air. Defaults to
            None: no warning.

    Raises:
        ValueError: when the window is not ascending.
    """

    def __init__(
        self,
        keys: KeysCollection,
        hu_window: Sequence[float],
        expected_below: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(hu_window) != 2 or hu_window[0] >= hu_window[1]:
            raise ValueError(f"hu_window must be [lowest, highest], got {hu_window!r}.")
        self.hu_window = [float(limit) for limit in hu_window]
        self.expected_below = expected_below

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        low, high = self.hu_window
        for key in self.key_iterator(item):
            volume = item[key]
            if self.expected_below is not None and (lowest := float(volume.min())) >= self.expected_below:
                name = getattr(volume, "meta", {}).get("filename_or_obj", "The image")
                logger.warning(
                    f"'{name}' holds no value below {self.expected_below:g} (lowest: {lowest:g}), as every CT in "
                    "Hounsfield units does: rescale it, no result on it can be trusted."
                )
            volume = convert_to_tensor(volume, dtype=torch.float32, track_meta=True).clamp(low, high)
            item[key] = volume.sub_(low).div_(high - low).mul_(2).sub_(1)
        return item
