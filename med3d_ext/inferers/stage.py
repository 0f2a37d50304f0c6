"""One stage of the cascade alone on whole volumes: what the cascade is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from med3d_ext.inferers.cascade import resized, stages, volume_affines
from med3d_ext.transforms.sampling import axis_spacing


class StageInferer(Inferer):
    """Run ``network.coarse`` or ``network.fine`` on whole volumes: resized to one grid, or window by window.

    Args:
        stage: `coarse` or `fine`.
        spatial_size: grid to which the volume is resized for one forward pass, or size of the windows where a spacing
            is given.
        spacing_mm: spacing to which the volume is resampled before windows slide over it. Defaults to None, no windows.
        overlap: share by which windows overlap. Defaults to 0.25.
        logits_dtype: type of the logits on the volume's grid. Defaults to None, that of the network.

    Raises:
        ValueError: ``stage`` is neither.
    """

    def __init__(
        self,
        stage: str,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float] | None = None,
        overlap: float = 0.25,
        logits_dtype: torch.dtype | None = None,
    ) -> None:
        if stage not in ("coarse", "fine"):
            raise ValueError(f"stage must be coarse or fine, got {stage!r}.")
        self.stage = stage
        self.spatial_size = tuple(spatial_size)
        self.spacing_mm = None if spacing_mm is None else np.asarray(spacing_mm, float)
        self.logits_dtype = logits_dtype
        self.sliding_window = SlidingWindowInferer(self.spatial_size, overlap=overlap, mode="gaussian")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits N x classes x D x H x W of whole volumes N x C x D x H x W, with their metadata.

        Raises:
            InputError: the network lacks a stage, or a spacing is not positive.
        """
        run = stages(network, args, kwargs)[self.stage == "fine"]
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        rows = [self._segment(*each, run) for each in zip(plain.split(1), volume_affines(inputs))]
        logits = rows[0] if len(rows) == 1 else torch.cat(rows)
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

    def _segment(self, volume: Tensor, affine: np.ndarray, run: Callable[[Tensor], Tensor]) -> Tensor:
        if self.spacing_mm is None:
            logits = run(resized(volume, self.spatial_size))
        else:
            size = np.round(np.array(volume.shape[2:]) * axis_spacing(affine) / self.spacing_mm).astype(int)
            logits = self.sliding_window(resized(volume, np.maximum(size, 1).tolist()), run)  # type: ignore[assignment]
        return resized(logits.to(self.logits_dtype), volume.shape[2:])
