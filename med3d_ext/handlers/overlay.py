"""A picture per case: the image with the label's and the prediction's contours, for the eye that trusts no number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor

from med3d_ext.io.files import case_name, stem, told_apart
from med3d_ext.transforms.load import load_volume

_SAMPLE = 1_000_000  # voxels that are enough for the range of gray values


class OverlayImage:
    """Write ``overlay_<case>.png``: an axial and a coronal slice through the target, label green, prediction red.

    Args:
        output_dir: folder of the pictures.
        maximum: pictures per run; the first cases get one. Defaults to 8.
        label_key: key of the label; a missing label is left out.
    """

    def __init__(self, output_dir: str, maximum: int = 8, label_key: str = "label") -> None:
        self.output_dir = output_dir
        self.maximum = maximum
        self.label_key = label_key
        self.written = 0
        self.names: dict[str, str] = {}

    def attach(self, engine: Any) -> None:
        """Register with a MONAI evaluator whose postprocessing leaves label maps."""
        engine.add_event_handler(Events.STARTED, lambda engine: setattr(self, "written", 0))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw_batch)

    def draw_batch(self, engine: Any) -> None:
        """Draw the cases of one batch."""
        for batch, output in zip(engine.state.batch, engine.state.output):
            if self.written >= self.maximum or engine.state.rank != 0:
                return
            file = batch["image"].meta["filename_or_obj"]
            image = load_volume(file, batch.get("channel"))  # the batch holds what the network saw, on its own grid
            if file not in self.names:  # the pictures of earlier cases keep their names
                self.names[file] = told_apart({**self.names, file: stem(case_name(file))})[file]
            path = Path(self.output_dir) / f"overlay_{self.names[file]}.png"
            label = output.get(self.label_key, batch.get(self.label_key))
            draw_overlay(path, image, output["pred"], label)
            self.written += 1


def draw_overlay(
    path: str | os.PathLike, image: MetaTensor, prediction: torch.Tensor, label: torch.Tensor | None = None
) -> None:
    """Draw one case.

    Args:
        path: the PNG to write.
        image: channel-first volume with its affine.
        prediction: label map (1, X, Y, Z) on the image's grid.
        label: reference label map, or None.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    volumes = [to_radiological(volume, image.affine) for volume in (image, prediction, label) if volume is not None]
    spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)[ras_order(image.affine)]
    masks = [(volume > 0, color) for volume, color in zip(volumes[1:], ("red", "lime"))]
    center = slice_through(masks[-1][0] if masks[-1][0].any() else masks[0][0])
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5))
    for panel, axis in zip(axes, (2, 1)):
        draw_panel(panel, volumes[0], masks, axis, center[axis], spacing, gray_range(volumes[0]))
    names = "prediction red" + (", label green" if label is not None else "")
    figure.suptitle(f"{Path(path).stem.removeprefix('overlay_')}: {names}", fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def draw_panel(
    panel: Any,
    image: np.ndarray,
    masks: Sequence[tuple[np.ndarray, str]],
    axis: int,
    number: int,
    spacing: np.ndarray,
    gray: tuple[float, float],
) -> None:
    """Draw one slice with contours, and the patient's sides at its edges.

    Args:
        panel: matplotlib's axes.
        image: volume (X, Y, Z) in LAS order, see :func:`to_radiological`.
        masks: further volumes of its shape, true inside, each with the color of its contour.
        axis: 2 for an axial slice, 1 for a coronal one.
        number: the slice.
        spacing: voxel size (mm) in the order of the axes.
        gray: the values that are drawn black and white.
    """
    rows, columns = (1, 0) if axis == 2 else (2, 0)
    cut = image.take(number, axis=axis).T
    aspect = spacing[rows] / spacing[columns]
    panel.imshow(cut, cmap="gray", origin="lower", aspect=aspect, vmin=gray[0], vmax=gray[1])
    for mask, color in masks:
        inside = mask.take(number, axis=axis).T
        if inside.any():
            panel.contour(inside, levels=[0.5], colors=color, linewidths=1)
    for side, place in (("R", (0.02, 0.5)), ("L", (0.95, 0.5)), ("A" if axis == 2 else "S", (0.48, 0.94))):
        panel.text(*place, side, color="yellow", fontsize=9, transform=panel.transAxes)
    panel.set_axis_off()


def gray_range(volume: np.ndarray) -> tuple[float, float]:
    """The values to draw black and white: the 1st and the 99th percentile."""
    step = max(1, round((volume.size / _SAMPLE) ** (1 / 3)))
    low, high = np.percentile(volume[..., ::step, ::step, ::step], (1, 99))
    return float(low), float(high)


def to_radiological(volume: torch.Tensor, affine: torch.Tensor) -> np.ndarray:
    """The first channel as an array in LAS order: drawn, the patient's right is on the left, as radiologists look."""
    from nibabel import orientations

    stored, wanted = orientations.io_orientation(np.asarray(affine)), orientations.axcodes2ornt("LAS")
    # A view: a whole-body CT is not copied for two slices.
    return orientations.apply_orientation(
        np.asarray(volume.detach().cpu())[0], orientations.ornt_transform(stored, wanted)
    )


def ras_order(affine: torch.Tensor) -> np.ndarray:
    """Which stored axis comes first, second and third in RAS order."""
    import nibabel

    return np.argsort(nibabel.orientations.io_orientation(np.asarray(affine))[:, 0])


def slice_through(mask: np.ndarray) -> list[int]:
    """Per axis, the slice with the most foreground; the middle of an empty mask."""
    if not mask.any():
        return [extent // 2 for extent in mask.shape]
    others = [(1, 2), (0, 2), (0, 1)]
    return [int(mask.sum(axis=axes).argmax()) for axes in others]
