"""What a case leaves behind: label map, picture and facts, all of them or none."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from med3d_ext.errors import InputError
from med3d_ext.handlers.overlay import draw_overlay
from med3d_ext.io.files import read_json, write_json
from med3d_ext.io.label_maps import write_label_map
from med3d_ext.tools.predict.cases import Case
from med3d_ext.tools.predict.predictor import LabelMap
from med3d_ext.transforms.load import stated_spacing, usable_spacing
from med3d_ext.transforms.sampling import axis_spacing

logger = logging.getLogger("med3d_ext.predict")


@dataclass(frozen=True)
class Origin:
    """What makes results: two of them that differ in any of these are not the same.

    Args:
        bundle: the bundle's name.
        version: its version.
        weights: SHA-256 of its weights.
        options: options of the config that were given.
    """

    bundle: str
    version: str
    weights: str
    options: dict[str, Any]

    def of(self, case: Case) -> dict[str, Any]:
        """What a case's JSON says about where it comes from."""
        return {
            "image": case.image,
            "bundle": self.bundle,
            "version": self.version,
            "weights_sha256": self.weights,
            "options": self.options,
        }


def map_file(output: Path, case: Case) -> Path:
    """Where a case's label map goes; `monai.bundle run` gives it the same name."""
    return output / f"{case.name}_seg.nii.gz"


def segmentation_file(output: Path, case: Case) -> Path:
    """Where a case's DICOM segmentation goes."""
    return output / f"{case.name}_seg.dcm"


def is_done(output: Path, case: Case, origin: Origin, dicom_seg: bool = False) -> bool:
    """Whether a result of this bundle, weights and image is there.

    Args:
        output: the folder.
        case: the case.
        origin: what makes the result.
        dicom_seg: whether a DICOM segmentation belongs to it.

    Raises:
        InputError: another result has its place.
    """
    path = map_file(output, case)
    if not path.exists():
        return False
    facts = _facts_file(path)
    found = read_json(facts) if facts.is_file() else {}
    differing = [key for key, value in origin.of(case).items() if found.get(key) != value]
    if differing:
        others = ", ".join(key.removesuffix("_sha256") for key in differing)
        raise InputError(f"'{path}' is the result of another {others}; choose another --output or give --overwrite.")
    return not dicom_seg or segmentation_file(output, case).exists()


def volumes(result: LabelMap, names: Mapping[int, str], is_scaled: bool = True) -> dict[str, dict[str, Any]]:
    """Name, voxels and volume (ml) of every label, by its value; a value without a name is called "label N".

    Args:
        result: the label map.
        names: label value to name, absent labels included.
        is_scaled: whether the affine's voxel size is the image's own; without it there is no volume (None).
    """
    voxels: Counter[int] = Counter()
    for plane in result.labels:  # numpy counts with 8 bytes for each voxel
        values, counts = np.unique(plane, return_counts=True)
        voxels.update(dict(zip(values.tolist(), counts.tolist())))
    milliliters = abs(float(np.linalg.det(result.affine[:3, :3]))) / 1000
    return {
        str(value): {
            "name": names.get(value, f"label {value}"),
            "voxels": voxels[value],
            "volume_ml": round(voxels[value] * milliliters, 3) if is_scaled else None,
        }
        for value in sorted({*names, *voxels} - {0})
    }


def check_result(result: LabelMap, image: MetaTensor, case: Case) -> bool:
    """Whether the image states its voxel size; an empty result is logged as a warning."""
    if not result.labels.any():
        logger.warning(f"Nothing was found in '{case.image}': its label map is empty; look at the image.")
    return usable_spacing(stated_spacing(case.image, image.affine))


def write_results(
    output: Path,
    case: Case,
    result: LabelMap,
    image: MetaTensor,
    names: Mapping[int, str],
    facts: Mapping[str, Any],
    write_segmentation: Callable[[Path], None] | None = None,
    sources: Mapping[int, Sequence[int]] | None = None,
) -> None:
    """Write a case's files as temporary neighbors of their places and move them there, the label map last.

    A map in its place thus says that the case is complete.

    Args:
        output: the folder.
        case: the case.
        result: its label map.
        image: its image, for the picture.
        names: label value to name.
        facts: what its JSON holds besides shape, spacing and orientation.
        write_segmentation: writes the DICOM segmentation to a path. Defaults to None.
        sources: see :func:`write_label_map`.
    """
    target = map_file(output, case)
    scratch = output / f".{case.name}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir(parents=True)
    try:
        path = scratch / target.name
        plain = MetaTensor(image.as_tensor(), affine=torch.from_numpy(result.affine))
        draw_overlay(scratch / f"{case.name}_preview.png", plain, torch.from_numpy(result.labels)[None])
        if write_segmentation is not None:
            write_segmentation(segmentation_file(scratch, case))
        write_json(_facts_file(path), {**facts, **_grid(result)})
        write_label_map(path, result.labels, result.affine, names, case.image, sources)
        for file in sorted(scratch.iterdir(), key=lambda each: each == path):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _facts_file(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _grid(result: LabelMap) -> dict[str, Any]:
    return {
        "shape": list(result.labels.shape),
        "spacing": [round(float(size), 6) for size in axis_spacing(result.affine)],
        "orientation": "".join(nibabel.aff2axcodes(result.affine)),
    }
