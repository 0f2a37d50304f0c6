"""Label maps on disk: which prediction belongs to which label, and whether both stand on one grid."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from med3d_ext.data.datalists import IMAGE_SUFFIXES, existing_file
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.io.volumes import load_volume, stated_spacing, usable_spacing
from med3d_ext.transforms.sampling import axis_spacing

_GRID_TOLERANCE = 0.1  # voxels; headers round their affines, a wrong grid is off by more


@dataclass(frozen=True)
class CasePairs:
    """Cases with both files, and the names of those with one.

    Args:
        files: case name to the files of prediction and label.
        unmatched_predictions: cases without a label.
        unmatched_labels: cases without a prediction.
    """

    files: dict[str, tuple[Path, Path]]
    unmatched_predictions: list[str]
    unmatched_labels: list[str]


def case_name(path: str | os.PathLike) -> str:
    """A file's case: its name without format, without the postfix of a label map and with LiTS's word for the image.

    >>> case_name("out/abdomen_20_seg.nii.gz"), case_name("segmentation-3.nii")
    ('abdomen_20', 'volume-3')
    """
    name = os.path.basename(path)
    name = next((name.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), name)
    return re.sub(r"^segmentation-", "volume-", re.sub(r"_(seg|pred|label|mask)$", "", name))


def pair_cases(pred: str | os.PathLike, label: str | os.PathLike) -> CasePairs:
    """Match predictions and labels by case name; two single files belong together whatever their names.

    Args:
        pred: a file, or a folder that is searched with its sub-folders.
        label: a file, a folder (its ``labelsTr``, ``labelsTs`` or ``labels`` where there are any) or a list of cases in
            the Decathlon's format, whose labels go by their images' names.

    Raises:
        InputError: when a file is missing, two files are one case, or nothing matches.
    """
    predictions, labels = _label_maps(pred, "PRED"), _label_maps(label, "LABEL")
    if Path(pred).is_file() and Path(label).is_file() and len(labels) == 1:
        labels = {next(iter(predictions)): next(iter(labels.values()))}
    files = {name: (predictions[name], labels[name]) for name in sorted(predictions.keys() & labels.keys())}
    if not files:
        names = [min(found) for found in (predictions, labels)]
        raise InputError(
            f"No prediction of '{pred}' ({names[0]}, ...) has the name of a label of '{label}' ({names[1]}, ...); "
            "name them alike, for example case_1_seg.nii.gz and case_1.nii.gz."
        )
    return CasePairs(files, sorted(predictions.keys() - labels.keys()), sorted(labels.keys() - predictions.keys()))


def _label_maps(source: str | os.PathLike, argument: str) -> dict[str, Path]:
    root = Path(source).expanduser()
    if not root.exists():
        raise InputError(f"{argument} '{source}' does not exist; give a label map or a folder of label maps.")
    if root.suffix == ".json":
        return _by_case(_listed_labels(root), root)
    if root.is_file():
        return {case_name(root): existing_file(root)}
    folders = [root / name for name in ("labelsTr", "labelsTs", "labels") if (root / name).is_dir()] or [root]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.name.endswith(IMAGE_SUFFIXES))
    paths = [path for path in paths if not path.name.startswith("._")]
    # LiTS keeps images and labels side by side.
    paths = [path for path in paths if path.name.startswith("segmentation-")] or paths
    if not paths:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{argument} '{source}' holds no label map ({kinds}); give a folder of them.")
    return _by_case([(case_name(path), existing_file(path)) for path in paths], root)


def _listed_labels(datalist: Path) -> list[tuple[str, Path]]:
    content = read_json(datalist)
    entries = [entry for split in SPLITS for entry in content.get(split) or []]
    labeled = [entry for entry in entries if isinstance(entry, dict) and {"image", "label"} <= entry.keys()]
    if not labeled:
        raise InputError(f"'{datalist}' lists no image with a label; give a list in the Decathlon's format.")
    return [(case_name(entry["image"]), existing_file(datalist.parent / entry["label"], datalist)) for entry in labeled]


def _by_case(found: list[tuple[str, Path]], source: Path) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for name, path in found:
        if cases.setdefault(name, path) != path:
            raise InputError(
                f"'{source}' holds two label maps of case {name}, '{cases[name]}' and '{path}'; remove one."
            )
    return cases


def read_pair(pred: Path, label: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of prediction and label (X, Y, Z), int32, and the spacing (mm) of their common grid.

    Raises:
        InputError: when a file is no label map, states no spacing, or the grids differ in shape, place or direction.
    """
    prediction, truth = load_volume(pred), load_volume(label)
    shapes = ["x".join(str(size) for size in volume.shape[1:]) for volume in (prediction, truth)]
    if prediction.shape != truth.shape:
        raise InputError(f"'{pred}' is {shapes[0]}, its label '{label}' is {shapes[1]}; bring both on one grid.")
    if not usable_spacing(stated_spacing(label, truth.affine)):
        raise InputError(f"'{label}' has no usable voxel spacing (0 or NaN); write the spacing into its header.")
    affines = [np.asarray(volume.affine, dtype=float) for volume in (prediction, truth)]
    spacing = axis_spacing(affines[1])
    shift = _largest_shift(affines[0], affines[1], truth.shape[1:])
    if not shift <= _GRID_TOLERANCE * spacing.min():
        raise InputError(
            f"'{pred}' lies up to {shift:.3g} mm off its label '{label}' (another origin, spacing or orientation in "
            "its header); bring both on one grid."
        )
    return _values(prediction, pred), _values(truth, label), spacing


def _largest_shift(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance (mm) between the places that two affines give a voxel: it lies in a corner."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.subtract(shape, 1), 1]
    return float(np.linalg.norm(corners @ (affine - other).T, axis=1).max())


def _values(volume: MetaTensor, path: Path) -> np.ndarray:
    values = volume.as_tensor()[0].numpy()
    whole = values.astype(np.int32)
    if (whole != values).any() or whole.min() < 0:
        raise InputError(f"'{path}' holds values that are no classes (negative or fractions); give a label map.")
    return whole
