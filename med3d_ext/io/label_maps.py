"""Label maps as NIfTI files on their image's own grid that carry the names of their labels."""

from __future__ import annotations

import colorsys
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from monai.data import NibabelWriter

from med3d_ext.errors import InputError
from med3d_ext.io.files import stem
from med3d_ext.io.grids import copy_geometry
from med3d_ext.io.image_files import is_nifti, nifti_header, stated_spacing, usable_spacing

logger = logging.getLogger("med3d_ext.predict")
_SOURCES = "values in the label files of the training"
COMMENT = 6
"""The code of a NIfTI extension that is text. The text is the XML in which Connectome Workbench keeps labels."""


@dataclass(frozen=True)
class SourceValues:
    """From the classes of a network to the values that its training's label files have for them.

    Args:
        table: value of each class.
        names: value to name, background left out.
        sources: value to all the values of the label files that it stands for, background included.
    """

    table: np.ndarray
    names: dict[int, str]
    sources: dict[int, list[int]]

    @classmethod
    def of(cls, names: Mapping[Any, str], values: Mapping[Any, Sequence[int]] | None) -> SourceValues:
        """From names and values by class, text or numbers; classes without values keep their number."""
        stated = {int(number): list(found) for number, found in (values or {}).items() if found}
        table = np.arange(max([0, *stated, *map(int, names)]) + 1)
        table[list(stated)] = [found[0] for found in stated.values()]
        return cls(
            table.astype(smallest_type(table.max())),
            {int(table[int(number)]): str(name) for number, name in names.items() if int(number) > 0},
            {found[0]: found for found in stated.values()},
        )

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Classes (X, Y, Z) as values, uint8, or uint16 if a value needs it; a class of no name keeps its number."""
        largest = int(labels.max(initial=0))
        table = np.concatenate([self.table, np.arange(len(self.table), largest + 1)])
        if (table == np.arange(len(table))).all():
            return labels
        return look_up(table.astype(smallest_type(table.max())), labels)


def look_up(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``table[labels]``, a plane at a time: numpy makes an index of 8 bytes of each voxel."""
    found = np.empty(labels.shape, table.dtype)
    for plane, values in zip(found, labels):
        plane[...] = table[values.astype(np.intp)]
    return found


def smallest_type(largest: float) -> Any:
    """The integer type of label maps whose largest value this is."""
    return np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32


def write_label_map(
    path: str | os.PathLike,
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    image: str | os.PathLike | None = None,
    sources: Mapping[int, Sequence[int]] | None = None,
) -> None:
    """Write a label map, all of it or nothing.

    For a NIfTI image that states its spacing the header's whole geometry is the image's, both forms with their codes:
    readers differ in which they take, and each must see both on one grid.

    Args:
        path: the ``.nii.gz`` or ``.nii`` to write.
        labels: label values (X, Y, Z), whole numbers from 0.
        affine: voxel index to RAS+ mm (4, 4).
        names: label value to name: they go into the description and, as a table, into an extension of the header.
        image: the file that was segmented.
        sources: label value to the values of the training's label files that it stands for, such as liver and its
            tumor; ``evaluate`` merges labels alike.
    """
    map_ = nibabel.Nifti1Image(labels.astype(smallest_type(labels.max(initial=0)), copy=False), affine)
    if image is not None and is_nifti(image) and usable_spacing(stated_spacing(image, affine)):
        copy_geometry(map_.header, nifti_header(image))
        map_ = nibabel.Nifti1Image(map_.dataobj, None, map_.header)
    header: Any = map_.header
    header.set_intent("label", name="label map")
    header["descrip"] = ", ".join(f"{value} {name}" for value, name in names.items()).encode()[:79]
    header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, _label_table(names, sources or {})))
    temporary = Path(path).with_name(f".{Path(path).name}")
    try:
        nibabel.save(map_, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _label_table(names: Mapping[int, str], sources: Mapping[int, Sequence[int]]) -> bytes:
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    if sources:
        entry = ElementTree.SubElement(ElementTree.SubElement(volume, "MetaData"), "MD")
        ElementTree.SubElement(entry, "Name").text = _SOURCES
        content = {str(key): list(each) for key, each in sources.items()}
        ElementTree.SubElement(entry, "Value").text = json.dumps(content)
    table = ElementTree.SubElement(volume, "LabelTable")
    for value, name in names.items():
        # Hues a golden ratio apart stay different however many there are.
        color = (str(round(part, 3)) for part in colorsys.hsv_to_rgb(value * 0.618 % 1, 0.8, 0.9))
        attributes = {"Key": str(value), **dict(zip(("Red", "Green", "Blue"), color)), "Alpha": "1"}
        ElementTree.SubElement(table, "Label", attributes).text = name
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def label_map_name(meta: Mapping[str, Any], _: Any = None) -> dict[str, Any]:
    """What MONAI's ``SaveImaged(output_name_formatter=...)`` calls a result: the case's name, else its image's file.

    MONAI itself takes the last part of a path up to its last dot, by which two patients' ``CT`` are one.
    """
    # The ending is for MONAI to cut off, instead of the end of a name such as 1.2.840.100.
    return {"subject": f"{meta.get('case') or stem(meta['filename_or_obj'])}.nii", "idx": meta.get("patch_index")}


class LabelMapWriter(NibabelWriter):
    """MONAI's NIfTI writer for label maps, by :func:`write_label_map`: for ``SaveImaged(writer=...)`` of a config.

    Args:
        names: class of the network to name, background included or not; classes may be text, as JSON has them.
        values: class to its values in the training's label files, of which the map carries the first, see
            :func:`med3d_ext.data.label_values`. Defaults to None: the classes' own numbers.
        output_dtype: ignored: uint8, or uint16 if a value needs it.
        kwargs: of MONAI's writer.
    """

    def __init__(
        self,
        names: Mapping[Any, str],
        values: Mapping[Any, Sequence[int]] | None = None,
        output_dtype: Any = np.uint8,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dtype=output_dtype, **kwargs)
        self.values = SourceValues.of(names, values)
        self.image: str | None = None

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Bring a map that is elsewhere to its image's grid, as MONAI's does, and remember the image."""
        original, affine, shape = self.get_meta_info(meta_dict)
        is_there = original is None or affine is None or np.allclose(np.asarray(original), np.asarray(affine))
        if is_there and (shape is None or tuple(shape) == tuple(self.data_obj.shape)):
            self.affine = affine  # MONAI's would make 4 bytes of each voxel
        else:
            super().set_metadata(meta_dict, resample, **options)
        self.image = (meta_dict or {}).get("filename_or_obj")

    def write(self, filename: str | os.PathLike, verbose: bool = False, **_: Any) -> None:
        """Write the file."""
        if verbose:
            logger.info(f"writing: {filename}")
        labels, affine = (np.asarray(each) for each in (self.data_obj, self.affine))
        values = self.values
        write_label_map(filename, values(labels), affine, values.names, self.image, values.sources)


def _tables(path: str | os.PathLike) -> Iterator[ElementTree.Element]:
    """The XML in the header of a NIfTI file; a damaged file is for the reader of its voxels to refuse."""
    header: Any = None
    if is_nifti(path):
        with suppress(InputError):
            header = nifti_header(path)
    for each in getattr(header, "extensions", []):
        if each.get_code() == COMMENT:
            with suppress(ElementTree.ParseError):
                yield ElementTree.fromstring(each.get_content().rstrip(b"\0"))


def read_label_names(path: str | os.PathLike) -> dict[int, str]:
    """The label names in a file of :func:`write_label_map`; empty if the header holds none."""
    labels = [label for table in _tables(path) for label in table.iter("Label")]
    return {int(label.attrib["Key"]): label.text or "" for label in labels}


def read_label_sources(path: str | os.PathLike) -> dict[int, list[int]]:
    """The ``sources`` in a file of :func:`write_label_map`; empty for every other file."""
    for entry in (entry for table in _tables(path) for entry in table.iter("MD")):
        if entry.findtext("Name") == _SOURCES:
            with suppress(ValueError, AttributeError):
                found = json.loads(entry.findtext("Value") or "{}")
                return {int(value): [int(each) for each in values] for value, values in found.items()}
    return {}
