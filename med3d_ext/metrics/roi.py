"""What a first stage is for: does the box around its result hold the target, and how much of the volume is that box?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from skimage import measure

from med3d_ext.metrics.segmentation import CaseMetric, affine_of
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
    margin = np.ceil(margin_mm / np.asarray(spacing)).astype(int)
    return np.maximum(first - margin, 0), np.minimum(last + margin, mask.shape[1:])


class ROIMetric(CaseMetric):
    """Share of the label inside the predicted region of interest, or that region's share of the volume.

    An empty prediction has recall 0, and share 1, because a cascade then falls back to the whole volume. A label
    without foreground has recall NaN.

    Args:
        quantity: "recall" or "share".
        margin_mm: margin around the predicted box (mm).
        inferer: a cascade's inferer, whose ``regions`` of the latest call are taken instead of the prediction's.
            Defaults to None; an inferer without regions counts as none.
    """

    def __init__(self, quantity: str = "recall", margin_mm: float = 20.0, inferer: Any = None) -> None:
        super().__init__()
        if quantity not in ("recall", "share"):
            raise ValueError(f"quantity must be 'recall' or 'share', got {quantity!r}.")
        self.quantity = quantity
        self.margin_mm = margin_mm
        self.inferer = inferer

    def of_case(self, prediction: torch.Tensor, label: torch.Tensor, number: int) -> torch.Tensor:
        regions = getattr(self.inferer, "regions", None)
        affine = affine_of(prediction)
        plain = (prediction.as_tensor() if isinstance(prediction, MetaTensor) else prediction).cpu()
        if not regions:
            box = region_of_interest(plain, axis_spacing(affine).tolist(), self.margin_mm)
        else:  # on a grid that may differ in the order and direction of its axes
            (first, last), source = regions[number]
            matrix = np.linalg.inv(affine) @ source
            corners = np.rint(np.stack([first, last - 1]) @ matrix[:3, :3].T + matrix[:3, 3]).astype(int)
            box = corners.min(axis=0), corners.max(axis=0) + 1
        inside = torch.zeros_like(plain, dtype=torch.bool)
        if box is not None:
            inside[:, box[0][0] : box[1][0], box[0][1] : box[1][1], box[0][2] : box[1][2]] = True
        if self.quantity == "share":
            return inside.float().mean()[None] if box is not None else torch.ones(1)
        target = torch.as_tensor(label).cpu() > 0
        return ((target & inside).sum() / target.sum())[None]  # 0 / 0 is NaN: nothing to find
