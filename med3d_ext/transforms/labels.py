"""What a label value is, and the values of the files turned into the classes that a domain's branch learns."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapLabelValue, MapTransform
from monai.utils import convert_to_dst_type

from med3d_ext.errors import InputError
from med3d_ext.transforms.per_domain import value_of

ROUNDING = 1e-3
"""How far a stored value may be from a whole number: files that state a slope come so."""


def whole_values(voxels: np.ndarray, path: Any, what: str = "label") -> np.ndarray:
    """The voxels of a label map as whole numbers of at least 0, in their own type.

    Args:
        voxels: values as read, of any shape.
        path: the file, for the error.
        what: what the message calls it.

    Raises:
        InputError: a value is negative, or further than 1e-3 from a whole number, as in a map of probabilities.
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
        label_map: value in the file to class. Or a table from an item's ``domain`` to such a map. Keys may be text,
            as JSON has them.
        allow_missing_keys: pass over absent keys.

    Raises:
        InputError: a label holds a larger value than the map names.
        KeyError: when the table lacks the item's domain.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_map: Mapping[Any, Any],
        allow_missing_keys: bool = False,
    ) -> None:
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
    """The largest value of the map, and what changes values; None where none changes."""
    changed = {int(value): int(target) for value, target in label_map.items() if int(value) != int(target)}
    mapper = MapLabelValue(list(changed), list(changed.values())) if changed else None
    return max(map(int, label_map)), mapper
