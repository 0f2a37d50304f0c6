"""Label maps as NIfTI files on their image's own grid that carry the names of their labels."""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from monai.data import NibabelWriter

from med3d_ext.io.volumes import NIFTI, stated_spacing, usable_spacing

logger = logging.getLogger("med3d_ext.predict")

COMMENT = 6
"""The code of a NIfTI extension that is text. The text is the XML in which Connectome Workbench keeps labels."""
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def write_label_map(
    path: str | os.PathLike,
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    image: str | os.PathLike | None = None,
) -> None:
    """Write a label map, all of it or nothing.

    For a NIfTI image that states its spacing the header's whole geometry is the image's, both forms with their codes:
    readers differ in which they take, most of all for files with neither, and each must see both on one grid.

    Args:
        path: the ``.nii.gz`` or ``.nii`` to write.
        labels: label values (X, Y, Z), whole numbers from 0.
        affine: voxel index to RAS+ mm (4, 4).
        names: label value to name. They go into the description and, as a table, into an extension of the header.
        image: the file that was segmented. Defaults to None.
    """
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.int32
    map_ = nibabel.Nifti1Image(labels.astype(dtype, copy=False), affine)
    if image is not None and str(image).endswith(NIFTI) and usable_spacing(stated_spacing(image, affine)):
        map_ = nibabel.Nifti1Image(map_.dataobj, None, _header_like(map_.header, nibabel.load(image).header))
    header: Any = map_.header
    header.set_intent("label", name="label map")
    header["descrip"] = ", ".join(f"{value} {name}" for value, name in names.items()).encode()[:79]
    header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, _label_table(names)))
    temporary = Path(path).with_name(f".{Path(path).name}")
    try:
        nibabel.save(map_, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class LabelMapWriter(NibabelWriter):
    """MONAI's NIfTI writer for label maps, by :func:`write_label_map`: ``SaveImaged(writer=...)`` of a config takes it.

    Args:
        names: label value to name, background included or not; values may be text, as JSON has them.
        output_dtype: ignored: uint8, or int32 where a value needs it.
        kwargs: of MONAI's writer.
    """

    def __init__(self, names: Mapping[Any, str], output_dtype: Any = np.uint8, **kwargs: Any) -> None:
        super().__init__(output_dtype=output_dtype, **kwargs)
        self.names = {int(value): str(name) for value, name in names.items() if int(value) > 0}
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
        write_label_map(filename, labels, affine, self.names, self.image)


def read_label_names(path: str | os.PathLike) -> dict[int, str]:
    """The label names in a file of :func:`write_label_map`; empty where the header holds none."""
    header: Any = nibabel.load(Path(path)).header
    tables = [each.get_content() for each in header.extensions if each.get_code() == COMMENT]
    labels = [label for table in tables for label in ElementTree.fromstring(table.rstrip(b"\0")).iter("Label")]
    return {int(label.attrib["Key"]): label.text or "" for label in labels}


def _header_like(header: Any, source: Any) -> Any:
    """``header`` with the place and the voxel sizes that ``source`` states."""
    for field in _GEOMETRY:
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]
    return header


def _label_table(names: Mapping[int, str]) -> bytes:
    root = ElementTree.Element("CaretExtension")
    table = ElementTree.SubElement(ElementTree.SubElement(root, "VolumeInformation", Index="0"), "LabelTable")
    for value, name in names.items():
        # Hues a golden ratio apart stay different however many there are.
        color = (round(part, 3) for part in colorsys.hsv_to_rgb(value * 0.618 % 1, 0.8, 0.9))
        attributes = {"Key": str(value), **dict(zip(("Red", "Green", "Blue"), map(str, color))), "Alpha": "1"}
        ElementTree.SubElement(table, "Label", attributes).text = name
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
