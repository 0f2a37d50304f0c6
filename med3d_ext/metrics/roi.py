"""What a first stage is for: does the box around its result hold the target, and how much of the volume is that box?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from monai.utils import MetricReduction
from skimage import measure

from med3d_ext.transforms.sampling import axis_spacing, target_box


def region_of_interest(
    mask: torch.Tensor, spacing: Sequence[float], margin_mm: float, smallest_part: float = 1.0
) -> tuple[np.ndarray, np.ndarray] | None:
    """The box around the largest components of a mask, grown by a margin and cut at the volume's faces.

    Args:
        mask: foreground mask (1, X, Y, Z).
        spacing: voxel spacing of the three axes (mm).
        margin_mm: margin on each side (mm).
        smallest_part: components of at least this share of the largest one's voxels count: two kidneys are two.
            Defaults to 1, the largest alone.

    Returns:
        first and one-past-last voxel, or None for an empty mask.
    """
    foreground = (torch.as_tensor(mask) > 0)[0].cpu().numpy()
    if not foreground.any():
        return None
    components = measure.label(foreground, connectivity=3)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    chosen = np.flatnonzero(sizes >= smallest_part * sizes.max()) if smallest_part < 1 else [sizes.argmax()]
    first, last = target_box(torch.from_numpy(np.isin(components, chosen))[None])  # type: ignore[misc]
    box = first, last
    margin = np.ceil(margin_mm / np.asarray(spacing)).astype(int)
    return np.maximum(box[0] - margin, 0), np.minimum(box[1] + margin, mask.shape[1:])


def box_between(
    box: tuple[np.ndarray, np.ndarray], source: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A box of one voxel grid on another that differs in the order and direction of its axes alone.

    Args:
        box: first and one-past-last voxel.
        source: affine (4, 4) of the box's grid.
        target: affine of the other grid.
    """
    matrix = np.linalg.inv(target) @ source
    corners = np.stack([box[0], box[1] - 1]) @ matrix[:3, :3].T + matrix[:3, 3]
    corners = np.rint(corners).astype(int)
    return corners.min(axis=0), corners.max(axis=0) + 1


class ROIMetric(CumulativeIterationMetric):
    """Share of the label inside the predicted region of interest, or that region's share of the volume.

    An empty prediction has recall 0, and share 1, because a cascade then falls back to the whole volume. A label
    without foreground has recall NaN.

    Args:
        quantity: "recall" or "share".
        margin_mm: margin around the predicted box (mm).
        spacing: voxel spacing (mm) for predictions that carry no affine.
        inferer: a cascade's inferer, whose ``regions`` of the latest call are taken instead of the prediction's.
            Defaults to None; an inferer without regions counts as none.
    """

    def __init__(
        self,
        quantity: str = "recall",
        margin_mm: float = 20.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        inferer: Any = None,
    ) -> None:
        super().__init__()
        if quantity not in ("recall", "share"):
            raise ValueError(f"quantity must be 'recall' or 'share', got {quantity!r}.")
        self.quantity = quantity
        self.margin_mm = margin_mm
        self.spacing = spacing
        self.inferer = inferer

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        if y is None:
            raise ValueError("y must be the label map, got None.")
        regions = getattr(self.inferer, "regions", None) or [None] * len(y_pred)
        return torch.stack([self._one(*each) for each in zip(y_pred, y, regions)])

    def _one(self, prediction: torch.Tensor, label: torch.Tensor, region: Any) -> torch.Tensor:
        spacing: Any = self.spacing
        affine = np.eye(4)
        if isinstance(prediction, MetaTensor):
            affine = np.asarray(prediction.affine.cpu(), float).reshape(-1, 4, 4)[0]
            spacing = axis_spacing(affine)
        plain = prediction.as_tensor() if isinstance(prediction, MetaTensor) else prediction
        if region is None:
            box = region_of_interest(plain.cpu(), spacing, self.margin_mm)
        else:
            box = box_between(region[0], region[1], affine)
        inside = torch.zeros_like(plain, dtype=torch.bool, device="cpu")
        if box is not None:
            inside[:, box[0][0] : box[1][0], box[0][1] : box[1][1], box[0][2] : box[1][2]] = True
        if self.quantity == "share":
            return inside.float().mean()[None] if box is not None else torch.ones(1)
        target = torch.as_tensor(label).cpu() > 0
        return ((target & inside).sum() / target.sum())[None]  # 0 / 0 is NaN: nothing to find

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """Mean over the cases that have a target."""
        return torch.nanmean(torch.as_tensor(self.get_buffer()))
