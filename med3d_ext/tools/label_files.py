"""Label maps on disk: which prediction belongs to which label, and both on one grid."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.data.datalists import existing_file
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.files import SUFFIXES, is_image_name, read_json, stem
from med3d_ext.io.grids import Grid, on_image_grid
from med3d_ext.io.label_maps import read_label_sources
from med3d_ext.transforms.load import load_volume, stated_spacing, usable_spacing
from med3d_ext.transforms.sampling import axis_spacing
from med3d_ext.transforms.values import whole_values

Merged = dict[int, tuple[list[int], list[int]]]
"""Value of a class to its values in the prediction and in the label; 0 is what counts as background."""


@dataclass(frozen=True)
class CasePairs:
    """Cases with both files, and the names of those with one."""

    files: dict[str, tuple[Path, Path]]  # by case name: prediction and label
    merged: dict[str, Merged]  # by case name: what its prediction or its list of labels merges
    unmatched_predictions: list[str]
    unmatched_labels: list[str]


def case_name(path: str | os.PathLike) -> str:
    """A file's case: its name without format, without the postfix of a label map and with LiTS's word for the image.

    3D Slicer's segmentations are ``case_1.seg.nrrd``.

    >>> case_name("out/abdomen_20_seg.nii.gz"), case_name("segmentation-3.nii")
    ('abdomen_20', 'volume-3')
    """
    return re.sub(r"^segmentation-", "volume-", re.sub(r"[_.](seg|pred|label|mask)$", "", stem(path)))


def pair_cases(pred: str | os.PathLike, label: str | os.PathLike) -> CasePairs:
    """Match predictions and labels by case name; two single files belong together whatever their names.

    Args:
        pred: a file, or a folder that is searched with its sub-folders.
        label: a file, a folder (its ``labelsTr``, ``labelsTs`` or ``labels`` where there are any) or a list of cases in
            the Decathlon's format, whose labels go by their images' names.
    """
    predictions, labels = _label_maps(pred, "PRED"), _label_maps(label, "LABEL")
    if Path(pred).is_file() and Path(label).is_file() and len(labels) == 1:
        labels = {next(iter(predictions)): next(iter(labels.values()))}
    for name in [name for name in predictions if name not in labels and re.search(r"_\d{4}$", name)]:
        if (case := name[:-5]) in labels:  # nnU-Net's image CASE_0000 has the label CASE
            _add(predictions, case, predictions.pop(name), pred)
    files = {name: (predictions[name], labels[name]) for name in sorted(predictions.keys() & labels.keys())}
    if not files:
        raise InputError(
            f"No prediction of '{pred}' ({min(predictions)}, ...) has the name of a label of '{label}' "
            f"({min(labels)}, ...); name them alike, for example case_1_seg.nii.gz and case_1.nii.gz."
        )
    listed = _merged_by_list(Path(label)) if Path(label).suffix == ".json" else {}
    merged = {name: _merged_by_prediction(found) or listed.get(name, {}) for name, (found, _) in files.items()}
    unmatched = (sorted(ours.keys() - files.keys()) for ours in (predictions, labels))
    return CasePairs(files, merged, *unmatched)


def _label_maps(source: str | os.PathLike, argument: str) -> dict[str, Path]:
    root = Path(source).expanduser()
    if not root.exists():
        raise InputError(f"{argument} '{source}' does not exist; give a label map or a folder of label maps.")
    if root.suffix == ".json":
        named = [(entry["image"], root.parent / entry["label"]) for entry in _labeled_entries(root)]
    elif root.is_file():
        named = [(root, root)]
    else:
        folders = [root / name for name in ("labelsTr", "labelsTs", "labels") if (root / name).is_dir()] or [root]
        paths = sorted(path for folder in folders for path in folder.rglob("*") if is_image_name(path))
        # LiTS keeps images and labels side by side.
        paths = [path for path in paths if path.name.startswith("segmentation-")] or paths
        if not paths:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{argument} '{source}' holds no label map ({kinds}); give a folder of them.")
        named = [(path, path) for path in paths]
    cases: dict[str, Path] = {}
    for name, path in named:
        _add(cases, case_name(name), existing_file(path, root if root.suffix == ".json" else None), source)
    return cases


def _add(cases: dict[str, Path], name: str, path: Path, source: str | os.PathLike) -> None:
    if cases.setdefault(name, path) != path:
        raise InputError(f"'{source}' holds two label maps of case {name}, '{cases[name]}' and '{path}'; remove one.")


def _labeled_entries(datalist: Path) -> list[dict[str, Any]]:
    entries = [entry for split in SPLITS for entry in read_json(datalist).get(split) or []]
    labeled = [entry for entry in entries if isinstance(entry, dict) and {"image", "label"} <= entry.keys()]
    if not labeled or not all(isinstance(entry[key], str) for entry in labeled for key in ("image", "label")):
        raise InputError(f"'{datalist}' lists no paths of images with labels; give a list in the Decathlon's format.")
    return labeled


def _merged_by_prediction(pred: Path) -> Merged:
    """What a prediction says that its values stand for: its own header, else `predict`'s summary next to it."""
    sources = read_label_sources(pred)
    summary = pred.with_name("summary.json")
    if not sources and summary.is_file():
        with suppress(InputError, ValueError, TypeError, AttributeError):  # another program's summary says nothing
            stated = read_json(summary).get("label_values") or {}
            sources = {int(value): list(map(int, values)) for value, values in stated.items()}
    return {value: ([value], values) for value, values in sources.items()}


def _merged_by_list(datalist: Path) -> dict[str, Merged]:
    """What a list merges: values that have one name in its table of labels."""
    tables = read_json(datalist).get("labels") or {}
    found: dict[str, Merged] = {}
    for entry in _labeled_entries(datalist):
        table = tables.get(entry.get("domain"), tables) if isinstance(tables, Mapping) else {}
        by_name: dict[str, list[int]] = {}
        with suppress(ValueError, KeyError, TypeError):  # a table of another form merges nothing
            for value in sorted(map(int, table)):
                by_name.setdefault(str(table[str(value)]), []).append(value)
            found[case_name(entry["image"])] = {v[0]: (v, v) for v in by_name.values() if len(v) > 1}
    return found


def read_pair(pred: Path, label: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of prediction and label (X, Y, Z), int32, and the spacing (mm) of their common grid.

    The label is brought onto the grid of the prediction as a training brings it onto that of the image; refused is what
    is not a label map, states no spacing, or has a grid of another shape, place or direction.
    """
    prediction, truth = load_volume(pred), load_volume(label)
    grid = Grid.of(pred, prediction.shape[1:], prediction.affine, "prediction")
    own = Grid.of(label, truth.shape[1:], truth.affine, "label")
    voxels = on_image_grid(truth.as_tensor()[0].numpy(), own, grid)
    reference = grid if grid.has_place or not own.has_place else own
    if not usable_spacing(stated_spacing(reference.path, reference.affine)):
        raise InputError(
            f"'{reference.path}' has no usable voxel spacing (0 or NaN); write the spacing into its header."
        )
    ours = whole_values(prediction.as_tensor()[0].numpy(), pred, "prediction").astype(np.int32)
    return ours, whole_values(voxels, label, "label").astype(np.int32), axis_spacing(reference.affine)
