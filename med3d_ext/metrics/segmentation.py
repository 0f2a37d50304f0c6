"""Label maps: overlap, distances of the surfaces in mm, volume, what a missed structure costs, and MONAI's metrics."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, DiceMetric
from monai.metrics.utils import get_edge_surface_distance
from monai.utils import MetricReduction, evenly_divisible_all_gather, string_list_all_gather
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from med3d_ext.transforms.sampling import axis_spacing

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
    """Measures of one class in one case; NaN if a measure is undefined and therefore not counted.

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
        assd_lits_mm: the same as the LiTS challenge measures it: its surface is thicker than MONAI's, a voxel of the
            mask with a face or an edge neighbor outside it.
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
        surface_dice, assd, assd_lits, hd95 = _surfaces(pred, label, spacing, tolerances)
    else:
        outcome = "falsely_found" if sizes[0] else "missed"
        surface_dice = [0.0] * len(tolerances)
        assd = assd_lits = hd95 = float(np.linalg.norm(np.multiply(pred.shape, spacing)))
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


def _surfaces(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerances_mm: Sequence[float]
) -> tuple[list[float], float, float, float]:
    """Surface Dice at every tolerance, ASSD, LiTS's ASSD and HD95 (mm) of two masks with voxels in both."""
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
    hd95 = float(max(np.percentile(each, 95) for each in (there, back)))
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(pred | label))
    thick = [mask & ~binary_erosion(mask, generate_binary_structure(3, 2)) for mask in (pred[box], label[box])]
    far = [distance_transform_edt(~surface, sampling=spacing) for surface in thick]
    return surface_dice, float(both.mean()), float(np.concatenate([far[1][thick[0]], far[0][thick[1]]]).mean()), hd95


def global_dice(cases: Iterable[ClassMeasures]) -> float | None:
    """Dice of all cases' voxels taken together, as LiTS's "Dice global" does; None if no case has a voxel.

    Large structures weigh more than small ones, and false finds in cases without the structure count.
    """
    counted = list(cases)
    total = sum(case.pred_voxels + case.label_voxels for case in counted)
    return 2 * sum(case.overlap_voxels for case in counted) / total if total else None


class CaseMetric(CumulativeIterationMetric):
    """A metric of MONAI's with values for each case, of which those that are NaN do not count."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise ValueError("y must be the label map, got None.")
        return torch.stack([self.of_case(*pair, number) for number, pair in enumerate(zip(y_pred, y))])

    def of_case(self, prediction: torch.Tensor, label: torch.Tensor, number: int) -> torch.Tensor:
        """The values (1 or classes) of the label maps (1, X, Y, Z) of the batch's case ``number``."""
        raise NotImplementedError

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """Mean over the cases and classes that have a value."""
        return torch.nanmean(torch.as_tensor(self.get_buffer()))


class LabelMapMetric(CaseMetric):
    """One of the measures of :func:`measure_class` of every class, in the label's mm.

    A missed structure counts with the declared penalty instead of leaving the mean, as MONAI's distances let it.

    Args:
        measure: name of the measure. Defaults to `assd_mm`.
        num_classes: classes, background counted. Defaults to 2.
        tolerance_mm: tolerance of the surface Dice. Defaults to 2.

    Raises:
        ValueError: there is no such measure.
    """

    def __init__(self, measure: str = "assd_mm", num_classes: int = 2, tolerance_mm: float = 2.0) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}.")
        self.measure = measure
        self.num_classes = num_classes
        self.tolerance_mm = tolerance_mm

    def of_case(self, prediction: torch.Tensor, label: torch.Tensor, number: int) -> torch.Tensor:
        spacing = axis_spacing(affine_of(label)).tolist()
        pred, truth = (np.asarray(torch.as_tensor(each).cpu()[0]) for each in (prediction, label))
        classes = range(1, self.num_classes)
        found = [measure_class(pred == value, truth == value, spacing, self.tolerance_mm) for value in classes]
        return torch.tensor([getattr(each, self.measure) for each in found])


def affine_of(volume: torch.Tensor) -> np.ndarray:
    """The affine (4, 4) of a volume or of the first of a batch; the identity without metadata."""
    return np.asarray(volume.affine.cpu(), float).reshape(-1, 4, 4)[0] if isinstance(volume, MetaTensor) else np.eye(4)


class DomainDice(Metric):
    """Mean over domains of the mean Dice over cases; the domains' own means are next to it as ``<name>/<domain>``.

    So a domain of four cases weighs as much as one of two hundred. A case's Dice is the mean over the classes that its
    label holds; a class that it lacks does not count. The per-case values are kept as metric details for
    :class:`med3d_ext.handlers.summary.EvaluationSummary`.

    Args:
        num_classes: domain to its number of classes, background counted.
        whole: count every foreground class as one target. Defaults to False.
    """

    def __init__(self, num_classes: dict[str, int], whole: bool = False) -> None:
        self.num_classes = num_classes
        self.whole = whole
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.domains: list[str] = []
        self.values: list[torch.Tensor] = []

    def update(self, output: Any) -> None:
        """Add one case: (domain, prediction, label), label maps of shape (1, X, Y, Z)."""
        domain, *maps = output
        plain = (volume.as_tensor() if isinstance(volume, MetaTensor) else volume for volume in maps)
        prediction, label = ((volume > 0 if self.whole else volume).long()[None] for volume in plain)
        classes = 2 if self.whole else self.num_classes[domain]
        dice = DiceMetric(include_background=False, num_classes=classes)(prediction, label)
        self.domains.append(domain)
        self.values.append(torch.nanmean(torch.as_tensor(dice)).detach().cpu()[None])

    def iteration_completed(self, engine: Any) -> None:
        """Add the cases of one batch of a MONAI evaluator; items without a domain are of the first."""
        for item, output in zip(engine.state.batch, engine.state.output):
            self.update((item.get("domain", next(iter(self.num_classes))), output["pred"], output["label"]))

    def completed(self, engine: Any, name: str) -> None:
        """Write the metric, its domains' means and its details into the engine's state."""
        value = self.compute()
        engine.state.metrics |= {f"{name}/{domain}": mean for domain, mean in self.means.items()} | {name: value}
        engine.state.metric_details[name] = self.gathered

    def compute(self) -> float:
        """Mean over the domains of all processes; 0 without a case."""
        own = torch.stack(self.values) if self.values else torch.zeros(0, 1)  # a process without cases gathers, too
        self.gathered = evenly_divisible_all_gather(own, concat=True)
        grouped: dict[str, list[float]] = defaultdict(list)
        for domain, value in zip(string_list_all_gather(self.domains), self.gathered[:, 0].tolist()):
            if value == value:  # NaN: the label holds no class to find
                grouped[domain].append(value)
        self.means = {domain: sum(members) / len(members) for domain, members in grouped.items()}
        return sum(self.means.values()) / len(self.means) if self.means else 0.0
