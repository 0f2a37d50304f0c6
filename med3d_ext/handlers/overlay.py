"""A picture per case: the image with the label's and the prediction's contours, for the eye that trusts no number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor

from med3d_ext.io.files import case_name
from med3d_ext.io.volumes import load_volume

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
            path = Path(self.output_dir) / f"overlay_{case_name(file).split('.')[0]}.png"
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
    masks = [volume > 0 for volume in volumes[1:]]
    step = max(1, round((volumes[0].size / _SAMPLE) ** (1 / 3)))
    low, high = np.percentile(volumes[0][::step, ::step, ::step], (1, 99))
    center = slice_through(masks[-1] if masks[-1].any() else masks[0])
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5))
    for panel, axis in zip(axes, (2, 1)):
        cut = [volume.take(center[axis], axis=axis) for volume in volumes]
        rows, columns = (1, 0) if axis == 2 else (2, 0)
        aspect = spacing[rows] / spacing[columns]
        panel.imshow(cut[0].T, cmap="gray", origin="lower", aspect=aspect, vmin=low, vmax=high)
        for mask, color in zip(cut[1:], ("red", "lime")):
            if (mask > 0).any():
                panel.contour((mask > 0).T, levels=[0.5], colors=color, linewidths=1)
        panel.set_axis_off()
    names = "prediction red" + (", label green" if label is not None else "")
    figure.suptitle(f"{Path(path).stem.removeprefix('overlay_')}: {names}", fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


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
