"""One class of one case: overlap, distances of the surfaces in mm, volume, and what a missed structure costs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

MEASURES = (
    *("dice", "surface_dice", "assd_mm", "assd_lits_mm", "hd95_mm"),
    *("volume_error_ml", "volume_error_relative"),
)
OUTCOMES = ("found", "missed", "falsely_found", "empty")
PENALTIES = (
    "missed (empty prediction) and falsely found (empty label): Dice 0, surface Dice 0, all distances the diagonal of "
    "the volume in mm; empty in both: not counted"
)


@dataclass(frozen=True)
class ClassMeasures:
    """Measures of one class in one case; NaN where a measure is undefined and therefore not counted.

    Args:
        outcome: "found" (voxels in both), "missed", "falsely_found" or "empty" (voxels in neither).
        pred_ml: predicted volume (ml).
        label_ml: labeled volume (ml).
        pred_voxels: number of predicted voxels.
        label_voxels: number of labeled voxels.
        overlap_voxels: number of voxels in both.
        dice: 2 overlap / (prediction + label).
        surface_dice: share of both surfaces' voxels that lie within the tolerance of the other surface.
        assd_mm: average symmetric surface distance: the mean over both surfaces' voxels.
        assd_lits_mm: the same as the LiTS challenge measures it, see :func:`lits_surface_distance`.
        hd95_mm: the larger of both directions' 95th percentile of the surface distances.
        volume_error_ml: prediction minus label (ml).
        volume_error_relative: prediction minus label, over label; NaN for an empty label.
        surface_dice_further: the surface Dice at each further tolerance; empty for a class that is in neither map.
    """

    outcome: str = "empty"
    pred_ml: float = 0.0
    label_ml: float = 0.0
    pred_voxels: int = 0
    label_voxels: int = 0
    overlap_voxels: int = 0
    dice: float = np.nan
    surface_dice: float = np.nan
    assd_mm: float = np.nan
    assd_lits_mm: float = np.nan
    hd95_mm: float = np.nan
    volume_error_ml: float = np.nan
    volume_error_relative: float = np.nan
    surface_dice_further: tuple[float, ...] = ()


def measure_class(
    pred: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    tolerance_mm: float = 2.0,
    further_mm: Sequence[float] = (),
) -> ClassMeasures:
    """Compare two masks on one grid.

    Surfaces are MONAI's: voxels of the mask with a face neighbor outside it, the volume's faces included.

    Args:
        pred: predicted mask (X, Y, Z), bool.
        label: true mask, the same shape.
        spacing: voxel spacing of the three axes (mm).
        tolerance_mm: distance up to which a surface voxel counts as right (mm).
        further_mm: further tolerances at which the surface Dice is wanted (mm).

    Raises:
        ValueError: when the shapes differ or a tolerance is negative.
    """
    if pred.shape != label.shape:
        raise ValueError(f"pred must be as large as label {label.shape}, got {pred.shape}.")
    tolerances = (tolerance_mm, *further_mm)
    if not all(tolerance >= 0 for tolerance in tolerances):
        raise ValueError(f"tolerance_mm must be at least 0, got {', '.join(map(str, tolerances))}.")
    sizes = int(pred.sum()), int(label.sum())
    if not any(sizes):
        return ClassMeasures()
    overlap = int((pred & label).sum())
    pred_ml, label_ml = (float(size * np.prod(spacing)) / 1000 for size in sizes)
    if all(sizes):
        outcome = "found"
        surface_dice, assd, hd95 = surface_measures(pred, label, spacing, tolerances)
        assd_lits = lits_surface_distance(pred, label, spacing)
    else:
        outcome = "falsely_found" if sizes[0] else "missed"
        surface_dice, assd = [0.0] * len(tolerances), float(np.linalg.norm(np.multiply(pred.shape, spacing)))
        assd_lits = hd95 = assd
    return ClassMeasures(
        outcome=outcome,
        pred_ml=pred_ml,
        label_ml=label_ml,
        pred_voxels=sizes[0],
        label_voxels=sizes[1],
        overlap_voxels=overlap,
        dice=2 * overlap / sum(sizes),
        surface_dice=surface_dice[0],
        surface_dice_further=tuple(surface_dice[1:]),
        assd_mm=assd,
        assd_lits_mm=assd_lits,
        hd95_mm=hd95,
        volume_error_ml=pred_ml - label_ml,
        volume_error_relative=(pred_ml - label_ml) / label_ml if label_ml else np.nan,
    )


def surface_measures(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerances_mm: Sequence[float]
) -> tuple[list[float], float, float]:
    """Surface Dice at every tolerance, ASSD (mm) and HD95 (mm) of two masks with voxels in both, in one pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about an argument that MONAI gives itself
        _, distances, _ = get_edge_surface_distance(
            torch.from_numpy(pred), torch.from_numpy(label), spacing=list(map(float, spacing)), symmetric=True
        )
    there, back = (np.asarray(each, dtype=float) for each in distances)
    both = np.concatenate([there, back])
    # The distances are float32: a step of exactly the tolerance must not fall out by rounding.
    surface_dice = [float((both <= tolerance * (1 + 1e-6)).mean()) for tolerance in tolerances_mm]
    # numpy instead of MONAI's torch.quantile, which refuses more than 2^24 distances.
    return surface_dice, float(both.mean()), float(max(np.percentile(each, 95) for each in (there, back)))


def lits_surface_distance(pred: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance (mm) as the LiTS challenge's scoring defines it, of masks with voxels in both.

    Its surface is thicker than MONAI's: a voxel of the mask with a face or an edge neighbor outside it.
    """
    either = np.nonzero(pred | label)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in either)
    surfaces = [mask & ~binary_erosion(mask, generate_binary_structure(3, 2)) for mask in (pred[box], label[box])]
    far = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return float(np.concatenate([far[1][surfaces[0]], far[0][surfaces[1]]]).mean())


def global_dice(cases: Iterable[ClassMeasures]) -> float | None:
    """Dice of all cases' voxels taken together, as LiTS's "Dice global" does; None where no case has a voxel.

    Large structures weigh more than small ones, and false finds in cases without the structure count.
    """
    counted = list(cases)
    total = sum(case.pred_voxels + case.label_voxels for case in counted)
    return 2 * sum(case.overlap_voxels for case in counted) / total if total else None
