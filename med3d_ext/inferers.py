"""Coarse to fine as one MONAI inferer (section 3.3, LiTS), and each of its stages alone on whole volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.metrics.roi import region_of_interest
from med3d_ext.networks.med3d import PADDING_LOGIT
from med3d_ext.transforms.sampling import axis_spacing

__all__ = ["CascadeInferer", "StageInferer"]

logger = logging.getLogger(__name__)

Stage = Callable[[Tensor], Tensor]
Box = tuple[np.ndarray, np.ndarray]
"""First and one-past-last voxel."""


class _TwoStageInferer(Inferer):
    """Takes a batch apart into volumes, each with its spacing, and a network into its stages."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits N x classes x D x H x W of whole volumes, with the metadata of ``inputs`` if there is any.

        Args:
            inputs: N x C x D x H x W. A MetaTensor's affine gives the spacing; without one it is 1 mm.
            network: holds the modules ``coarse`` and ``fine``, DistributedDataParallel around it or not.
            args: passed to both modules, as are ``kwargs``.

        Raises:
            InputError: the network lacks a stage, or a spacing is not positive.
            ValueError: ``inputs`` has not five dimensions, or a stage's logits fewer than two channels.
        """
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be N x C x D x H x W, got {tuple(inputs.shape)}.")
        stages: Any = getattr(network, "module", network)
        for name in ("coarse", "fine"):
            if not hasattr(stages, name):
                kind = type(stages).__name__
                raise InputError(f"network_def must hold the module {name}, got {kind}: use a TwoStageSegmenter.")
        plain, affines = inputs, torch.eye(4)
        if isinstance(inputs, MetaTensor):
            plain, affines = inputs.as_tensor(), torch.as_tensor(inputs.affine).cpu()
        self.regions: list[tuple[Box, np.ndarray]] = []
        rows = []
        for volume, affine in zip(plain.split(1), affines.expand(len(plain), 4, 4).numpy()):
            spacing = axis_spacing(affine)
            if not (spacing > 0).all():
                raise InputError(
                    f"The image's affine must have a positive spacing, got {spacing.tolist()} mm: correct it."
                )
            logits, box = self._segment(
                volume,
                spacing,
                lambda x: stages.coarse(x, *args, **kwargs),
                lambda x: stages.fine(x, *args, **kwargs),
            )
            rows.append(logits)
            self.regions.append((box, affine))
        logits = rows[0] if len(rows) == 1 else torch.cat(rows)  # a whole CT is not copied for nothing
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

    def _segment(self, volume: Tensor, spacing: np.ndarray, coarse: Stage, fine: Stage) -> tuple[Tensor, Box]:
        """Logits of one volume (1, C, D, H, W), and the box that the last network saw."""
        raise NotImplementedError


class CascadeInferer(_TwoStageInferer):
    """Run ``network.coarse`` on the whole volume, ``network.fine`` on the region of interest that it finds.

    The box around the largest component of the coarse foreground (or several, see ``smallest_part``), grown by a
    margin, is the region of interest. The fine logits are pasted into a volume whose other voxels are certain
    background. Two fallbacks, both logged: without any coarse foreground the fine network sees the whole volume once; a
    fine mask within half the margin of a face of the region which is not a face of the volume moves that face out, by
    the margin, then twice and four times that, and the fine network runs again: networks stop short of a face that
    cuts the organ.

    Axes are taken as they come, so the volume must have the orientation of the training.

    Args:
        margin_mm: margin around the coarse box on each side. Defaults to 20.
        coarse_size: grid to which the whole volume is resized for the coarse network, None if there is no trained
            coarse network: the fine one then sees the whole volume. Defaults to 128 x 128 x 64.
        fine_size: grid to which the region is resized for the fine network. Defaults to None: the volume's own grid.
        maximum_voxels: largest region that the fine network takes in one piece on its own grid; windows slide over a
            larger one. Defaults to 8,000,000.
        roi_size: size of these windows. Defaults to 128 x 128 x 128.
        overlap: share by which they overlap. Defaults to 0.25.
        maximum_growths: how often a region may grow. Defaults to 3.
        minimum_ml: a smaller fine result (ml) counts as nothing, and the label map is empty. Defaults to 0.
        smallest_part: coarse components of at least this share of the largest are in the region, too, such as a second
            kidney. Defaults to 1: the largest alone.
        logits_dtype: type of the logits on the volume's grid. Defaults to None, that of the network; ``torch.float16``
            halves the memory of a large volume, and may pick the other class if float32 decides by less than a
            thousandth.

    Attributes:
        regions: the latest call's region of interest of each volume, as box and affine (4, 4) of its voxels.
    """

    def __init__(
        self,
        margin_mm: float = 20.0,
        coarse_size: Sequence[int] | None = (128, 128, 64),
        fine_size: Sequence[int] | None = None,
        maximum_voxels: int = 8_000_000,
        roi_size: Sequence[int] = (128, 128, 128),
        overlap: float = 0.25,
        maximum_growths: int = 3,
        minimum_ml: float = 0.0,
        logits_dtype: torch.dtype | None = None,
        smallest_part: float = 1.0,
    ) -> None:
        self.margin_mm, self.maximum_voxels, self.maximum_growths = margin_mm, maximum_voxels, maximum_growths
        self.coarse_size = None if coarse_size is None else tuple(coarse_size)
        self.fine_size = None if fine_size is None else tuple(fine_size)
        self.minimum_ml, self.logits_dtype, self.smallest_part = minimum_ml, logits_dtype, smallest_part
        self.regions = []
        self.sliding_window = SlidingWindowInferer(roi_size, overlap=overlap, mode="gaussian")

    def _segment(self, volume: Tensor, spacing: np.ndarray, coarse: Stage, fine: Stage) -> tuple[Tensor, Box]:
        shape = np.array(volume.shape[2:])
        margin = np.ceil(self.margin_mm / spacing).astype(int)
        box: Box = (np.zeros(3, int), shape)
        found = None
        if self.coarse_size is None:
            logger.warning("There is no trained coarse network: the fine network runs once on the whole volume.")
        else:
            logits = coarse(resized(volume, self.coarse_size))
            # Connected on the coarse grid: quick.
            found = region_of_interest(foreground(logits), (1.0, 1.0, 1.0), 0.0, self.smallest_part)
            if found is None:
                logger.warning("The coarse network found nothing: the fine network runs once on the whole volume.")
        if found is not None:
            size = np.array(logits.shape[2:])  # rounded outwards in integers: no voxel more by rounding errors
            box = _grown((found[0] * shape // size, -(-found[1] * shape // size)), np.ones((2, 3), int), margin, shape)
        logits, touched = self._region(volume, box, fine, margin)
        for growth in range(self.maximum_growths):
            if not touched.any():
                break
            logger.info("The fine mask reaches a face of the region of interest: it grows.")
            box = _grown(box, touched, np.maximum(margin, 1) * 2**growth, shape)  # a coarse box may be far too small
            del logits  # a whole volume's would wait for its successor in memory
            logits, touched = self._region(volume, box, fine, margin)
        if touched.any():
            logger.warning(
                f"The fine mask reaches a face of the region of interest after {self.maximum_growths} growths."
            )
        found_ml = float(torch.count_nonzero(foreground(logits)) * np.prod(spacing) / 1000)  # sum() takes 8 bytes each
        if not found_ml:
            logger.warning("The fine network found nothing: the label map is empty.")
        elif found_ml < self.minimum_ml:
            logger.warning(
                f"The fine network found {found_ml:.1f} ml, less than {self.minimum_ml:g}: the label map is empty."
            )
            logits[:, 0], logits[:, 1:] = 0, PADDING_LOGIT
        if logits.shape[2:] == volume.shape[2:]:
            return logits, box
        pasted = logits.new_full((1, logits.shape[1], *volume.shape[2:]), PADDING_LOGIT)
        pasted[:, 0] = 0
        pasted[_inside(box)] = logits
        return pasted, box

    def _region(self, volume: Tensor, box: Box, fine: Stage, margin: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Logits of a region on its own grid, and to which of its faces the mask comes nearer than half the margin.

        The faces, as an array (first or last, axis), are those that are not faces of the volume.
        """
        shape = np.array(volume.shape[2:])
        share = np.prod((box[1] - box[0]) / shape)
        logger.info(f"Region of interest {box[0].tolist()} to {box[1].tolist()}: {share:.0%} of the volume.")
        region = volume[_inside(box)]
        if self.fine_size is not None:
            logits = fine(resized(region, self.fine_size)).to(self.logits_dtype)  # first: the larger grid costs memory
            logits = resized(logits, region.shape[2:])
        elif region[0, 0].numel() <= self.maximum_voxels:
            logits = fine(region).to(self.logits_dtype)
        else:
            logits = self.sliding_window(region, fine).to(self.logits_dtype)  # type: ignore[union-attr]
        touched = np.stack([box[0] > 0, box[1] < shape])
        for side, axis in np.argwhere(touched):
            length = logits.shape[axis + 2]
            layers = min(max(int(margin[axis]) // 2, 1), length)
            near = logits.narrow(int(axis) + 2, 0 if side == 0 else length - layers, layers)
            touched[side, axis] = bool(foreground(near).any())
        return logits, touched


class StageInferer(_TwoStageInferer):
    """Run ``network.coarse`` or ``network.fine`` on whole volumes: resized to one grid, or window by window.

    Args:
        stage: `coarse` or `fine`.
        spatial_size: grid to which the volume is resized for one forward pass, or size of the windows if a spacing is
            given.
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
        self.stage, self.spatial_size, self.logits_dtype = stage, tuple(spatial_size), logits_dtype
        self.spacing_mm = None if spacing_mm is None else np.asarray(spacing_mm, float)
        self.sliding_window = SlidingWindowInferer(self.spatial_size, overlap=overlap, mode="gaussian")

    def _segment(self, volume: Tensor, spacing: np.ndarray, coarse: Stage, fine: Stage) -> tuple[Tensor, Box]:
        run, shape = coarse if self.stage == "coarse" else fine, volume.shape[2:]
        if self.spacing_mm is None:
            logits = run(resized(volume, self.spatial_size))
        else:
            size = np.maximum(np.round(np.array(shape) * spacing / self.spacing_mm).astype(int), 1)
            logits = self.sliding_window(resized(volume, size.tolist()), run)  # type: ignore[assignment]
        return resized(logits.to(self.logits_dtype), shape), (np.zeros(3, int), np.array(shape))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear, first to last face: what ``ResampleToGridd`` does in training."""
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def foreground(logits: Tensor) -> Tensor:
    """Where argmax would not pick the background (1, D, H, W), without its 8 bytes for each voxel."""
    if logits.shape[1] < 2:
        raise ValueError(f"Logits must have at least 2 channels (background counts), got {logits.shape[1]}.")
    if logits.shape[1] == 2:
        return logits[:, 1] > logits[:, 0]
    return (logits[:, 1:] > logits[:, :1]).any(dim=1)


def _grown(box: Box, faces: np.ndarray, margin: np.ndarray, shape: np.ndarray) -> Box:
    return np.maximum(box[0] - faces[0] * margin, 0), np.minimum(box[1] + faces[1] * margin, shape)


def _inside(box: Box) -> tuple[Any, ...]:
    return (..., *(slice(int(first), int(last)) for first, last in zip(*box)))
