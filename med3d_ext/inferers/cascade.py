"""Coarse to fine as one MONAI inferer: find the organ, segment the region around it (section 3.3, LiTS)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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

logger = logging.getLogger(__name__)

Stage = Callable[[Tensor], Tensor]
Box = tuple[np.ndarray, np.ndarray]
"""First and one-past-last voxel."""


class CascadeInferer(Inferer):
    """Run ``network.coarse`` on the whole volume, ``network.fine`` on the region of interest that it finds.

    The box around the largest component of the coarse foreground (or several, see ``smallest_part``), grown by a
    margin, is the region of interest. The
    fine logits are pasted into a volume whose other voxels are certain background. Two fallbacks, both logged: without
    any coarse foreground the fine network sees the whole volume once; a fine mask within half the margin of a face of
    the region which is no face of the volume moves that face out, by the margin, then twice and four times that, and
    the fine network runs again: networks stop short of a face that cuts the organ.

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
            halves the memory of a large volume, and where float32 decides by less than a thousandth it may pick the
            other class.

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
        self.margin_mm = margin_mm
        self.coarse_size = None if coarse_size is None else tuple(coarse_size)
        self.fine_size = None if fine_size is None else tuple(fine_size)
        self.maximum_voxels = maximum_voxels
        self.maximum_growths = maximum_growths
        self.minimum_ml = minimum_ml
        self.logits_dtype, self.smallest_part = logits_dtype, smallest_part
        self.regions: list[tuple[Box, np.ndarray]] = []
        self.sliding_window = SlidingWindowInferer(roi_size, overlap=overlap, mode="gaussian")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits of whole volumes.

        Args:
            inputs: N x C x D x H x W. A MetaTensor's affine gives the spacing; without one it is 1 mm.
            network: holds the modules ``coarse`` and ``fine``, DistributedDataParallel around it or not.
            args: passed to both modules, as are ``kwargs``.

        Returns:
            logits N x classes x D x H x W, with the metadata of ``inputs`` if there is any.

        Raises:
            InputError: the network lacks a stage, or a spacing is not positive.
            ValueError: ``inputs`` has not five dimensions, or a stage's logits fewer than two channels.
        """
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be N x C x D x H x W, got {tuple(inputs.shape)}.")
        coarse, fine = stages(network, args, kwargs)
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        self.regions, rows = [], []
        for volume, affine in zip(plain.split(1), volume_affines(inputs)):
            logits, box = self._segment(volume, axis_spacing(affine), coarse, fine)
            rows.append(logits)
            self.regions.append((box, affine))
        logits = rows[0] if len(rows) == 1 else torch.cat(rows)  # a whole CT is not copied for nothing
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

    def _segment(self, volume: Tensor, spacing: np.ndarray, coarse: Stage, fine: Stage) -> tuple[Tensor, Box]:
        """Logits of one volume (1, C, D, H, W), and the box that the fine network saw."""
        shape = np.array(volume.shape[2:])
        margin = np.ceil(self.margin_mm / spacing).astype(int)
        box = self._coarse_box(volume, coarse)
        if box is None:
            box = np.zeros(3, int), shape
        else:
            box = _grow(box, np.ones((2, 3), int), margin, shape)
        logits, touched = self._region(volume, box, fine, margin)
        for growth in range(self.maximum_growths):
            if not touched.any():
                break
            logger.info("The fine mask reaches a face of the region of interest: it grows.")
            box = _grow(box, touched, np.maximum(margin, 1) * 2**growth, shape)  # a coarse box may be far too small
            del logits  # a whole volume's would wait for its successor in memory
            logits, touched = self._region(volume, box, fine, margin)
        if touched.any():
            logger.warning(
                f"The fine mask reaches a face of the region of interest after {self.maximum_growths} growths."
            )
        found = torch.count_nonzero(foreground(logits))  # sum() would take 8 bytes for each voxel
        found_ml = float(found * np.prod(spacing) / 1000)
        if not found_ml:
            logger.warning("The fine network found nothing: the label map is empty.")
        elif found_ml < self.minimum_ml:
            logger.warning(
                f"The fine network found {found_ml:.1f} ml, less than {self.minimum_ml:g}: the label map is empty."
            )
            logits[:, 0], logits[:, 1:] = 0, PADDING_LOGIT
        return _paste(logits, box, volume), box

    def _region(self, volume: Tensor, box: Box, fine: Stage, margin: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Logits of the region, and to which of its faces the mask comes nearer than half the margin."""
        shape = np.array(volume.shape[2:])
        share = np.prod((box[1] - box[0]) / shape)
        logger.info(f"Region of interest {box[0].tolist()} to {box[1].tolist()}: {share:.0%} of the volume.")
        logits = self._fine(volume[_inside(box)], fine)
        return logits, _touched(logits, box, shape, np.maximum(margin // 2, 1))

    def _coarse_box(self, volume: Tensor, coarse: Stage) -> Box | None:
        """The box around the largest coarse component in voxels of the volume, rounded outwards; None without any."""
        if self.coarse_size is None:
            logger.warning("There is no trained coarse network: the fine network runs once on the whole volume.")
            return None
        logits = coarse(resized(volume, self.coarse_size))
        # Connected on the coarse grid: quick.
        found = region_of_interest(foreground(logits), (1.0, 1.0, 1.0), 0.0, self.smallest_part)
        if found is None:
            logger.warning("The coarse network found nothing: the fine network runs once on the whole volume.")
            return None
        shape, size = np.array(volume.shape[2:]), np.array(logits.shape[2:])
        return found[0] * shape // size, -(-found[1] * shape // size)  # in integers: no voxel more by rounding errors

    def _fine(self, region: Tensor, fine: Stage) -> Tensor:
        """Logits of a region on its own grid."""
        if self.fine_size is not None:
            logits = fine(resized(region, self.fine_size)).to(self.logits_dtype)  # first: the larger grid costs memory
            return resized(logits, region.shape[2:])
        if region[0, 0].numel() <= self.maximum_voxels:
            return fine(region).to(self.logits_dtype)
        return self.sliding_window(region, fine).to(self.logits_dtype)  # type: ignore[union-attr]


def stages(network: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> tuple[Stage, Stage]:
    """The coarse and the fine network of a two-stage one, DistributedDataParallel around it or not.

    Args:
        network: holds the modules ``coarse`` and ``fine``.
        args: passed to both, as are ``kwargs``.

    Raises:
        InputError: a stage is missing.
    """
    network, given = getattr(network, "module", network), kwargs or {}
    for name in ("coarse", "fine"):
        if not hasattr(network, name):
            kind = type(network).__name__
            raise InputError(f"network_def must hold the module {name}, got {kind}: wrap both in a TwoStageSegmenter.")
    return lambda x: network.coarse(x, *args, **given), lambda x: network.fine(x, *args, **given)


def volume_affines(inputs: Tensor) -> list[np.ndarray]:
    """The affine (4, 4) of each volume of a batch, the identity for a tensor without metadata.

    Raises:
        InputError: a spacing is not positive.
    """
    affine = torch.as_tensor(inputs.affine).cpu() if isinstance(inputs, MetaTensor) else torch.eye(4)
    affines = [each.numpy() for each in affine.expand(inputs.shape[0], 4, 4)]  # a collated batch has one for each
    for spacing in map(axis_spacing, affines):
        if not (spacing > 0).all():
            raise InputError(f"The image's affine must have a positive spacing, got {spacing.tolist()} mm: correct it.")
    return affines


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


def _touched(logits: Tensor, box: Box, shape: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which faces (first or last, axis) that are no faces of the volume the mask reaches, within ``depth`` voxels."""
    inner = np.stack([box[0] > 0, box[1] < shape])
    for side, axis in np.argwhere(inner):
        layers = min(int(depth[axis]), logits.shape[axis + 2])
        near = logits.narrow(int(axis) + 2, 0 if side == 0 else logits.shape[axis + 2] - layers, layers)
        inner[side, axis] = bool(foreground(near).any())
    return inner


def _grow(box: Box, faces: np.ndarray, margin: np.ndarray, shape: np.ndarray) -> Box:
    return np.maximum(box[0] - faces[0] * margin, 0), np.minimum(box[1] + faces[1] * margin, shape)


def _inside(box: Box) -> tuple[Any, ...]:
    return (..., *(slice(int(first), int(last)) for first, last in zip(*box)))


def _paste(logits: Tensor, box: Box, volume: Tensor) -> Tensor:
    if logits.shape[2:] == volume.shape[2:]:
        return logits
    pasted = logits.new_full((1, logits.shape[1], *volume.shape[2:]), PADDING_LOGIT)
    pasted[:, 0] = 0
    pasted[_inside(box)] = logits
    return pasted
