"""Pictures of cases for the eye that trusts no number: image, label and prediction in radiological view."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from med3d_ext.handlers.base import Handler
from med3d_ext.io.files import case_name, stem, told_apart, write_atomically
from med3d_ext.transforms.load import load_volume
from med3d_ext.transforms.sampling import axis_spacing

_SAMPLE = 1_000_000  # voxels that are enough for the range of gray values


@dataclass(eq=False)
class OverlayImage(Handler):
    """Write ``overlay_<case>.png``: an axial and a coronal slice through the target, label green, prediction red.

    Attach it to an evaluator whose postprocessing leaves label maps.

    Args:
        output_dir: folder of the pictures.
        maximum: pictures per run; the first cases get one. Defaults to 8.
    """

    output_dir: str
    maximum: int = 8

    def __post_init__(self) -> None:
        self.names: dict[str, str] = {}

    def started(self, engine: Any) -> None:
        self.written = 0

    def iteration_completed(self, engine: Any) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output):
            if self.written >= self.maximum:
                return
            file = batch["image"].meta["filename_or_obj"]
            image = load_volume(file, batch.get("channel"))  # the batch holds what the network saw, on its own grid
            if file not in self.names:  # the pictures of earlier cases keep their names
                self.names[file] = told_apart({**self.names, file: stem(case_name(file))})[file]
            path = Path(self.output_dir) / f"overlay_{self.names[file]}.png"
            draw_overlay(path, image, output["pred"], output.get("label", batch.get("label")))
            self.written += 1


@dataclass(eq=False)
class ValidationSnapshots(Handler):
    """Write ``epoch_<epoch>.npz``: one axial slice of the first validation case, as in the paper's figure 1.

    The slice is the one with most of the label, in radiological view, on the grid of the validation. The files hold
    ``image`` (float16), ``label`` and ``prediction`` (uint8), each (rows, columns), the pixels' ``aspect`` (height by
    width) and the ``case``. An output without a volume, a classifier's, gives none.

    An overlay adds it to the evaluator of any bundle: ``{"+validate::handlers": [{"_target_": ...}]}``.

    Args:
        output_dir: folder of the files, made if missing.
        epochs: the epochs to keep, of those that are validated.
    """

    output_dir: str
    epochs: Sequence[int]

    def iteration_completed(self, engine: Any) -> None:
        state = engine.state
        if state.iteration != 1 or state.epoch not in self.epochs or not isinstance(state.output, list):
            return
        item = state.output[0]
        if all(torch.as_tensor(item[key]).ndim == 4 for key in ("image", "label", "pred")):
            with write_atomically(Path(self.output_dir) / f"epoch_{state.epoch:04d}.npz") as file:
                np.savez_compressed(file, **snapshot(item["image"], item["label"], item["pred"]))


def snapshot(image: Any, label: torch.Tensor, prediction: torch.Tensor) -> dict[str, Any]:
    """The arrays of a file of :class:`ValidationSnapshots`; label and prediction are maps or their classes one-hot."""
    maps = [volume.argmax(0, keepdim=True) if len(volume) > 1 else volume for volume in (label, prediction)]
    volumes, spacing = to_radiological(image.affine, image, *maps)
    number = slice_through(volumes[1] > 0)[2]
    cuts = [volume[:, :, number].T for volume in volumes]
    return {
        "image": cuts[0].astype(np.float16),
        "label": cuts[1].astype(np.uint8),
        "prediction": cuts[2].astype(np.uint8),
        "aspect": float(spacing[1] / spacing[0]),
        "case": os.path.basename(str(image.meta.get("filename_or_obj", ""))),
    }


def draw_overlay(
    path: str | os.PathLike, image: MetaTensor, prediction: torch.Tensor, label: torch.Tensor | None = None
) -> None:
    """Draw a channel-first image with its affine, and label maps (1, X, Y, Z) on its grid, into the PNG ``path``."""
    from matplotlib.figure import Figure

    maps = [prediction] if label is None else [prediction, label]
    volumes, spacing = to_radiological(image.affine, image, *maps)
    masks = [(volume > 0, color) for volume, color in zip(volumes[1:], ("red", "lime"))]
    figure = Figure(figsize=(11, 5))
    shown = masks[-1][0] if masks[-1][0].any() else masks[0][0]
    draw_slices(figure.subplots(1, 2), volumes[0], masks, spacing, slice_through(shown))
    names = "prediction red" + (", label green" if label is not None else "")
    figure.suptitle(f"{Path(path).stem.removeprefix('overlay_')}: {names}", fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def draw_slices(
    panels: Any,
    image: np.ndarray,
    masks: Sequence[tuple[np.ndarray, str]],
    spacing: np.ndarray,
    center: Sequence[int],
) -> None:
    """Draw an axial and a coronal slice with the patient's sides at the edges, and the masks' contours in their color.

    Volumes and spacing are those of :func:`to_radiological`; ``center`` is the slice of each axis.
    """
    low, high = gray_range(image)
    for panel, axis, up in zip(panels, (2, 1), "AS"):
        cut = image.take(center[axis], axis=axis).T
        aspect = spacing[3 - axis] / spacing[0]
        panel.imshow(cut, cmap="gray", origin="lower", aspect=aspect, vmin=low, vmax=high)
        for mask, color in masks:
            inside = mask.take(center[axis], axis=axis).T
            if inside.any():
                panel.contour(inside, levels=[0.5], colors=color, linewidths=1)
        for side, place in (("R", (0.02, 0.5)), ("L", (0.95, 0.5)), (up, (0.48, 0.94))):
            panel.text(*place, side, color="yellow", fontsize=9, transform=panel.transAxes)
        panel.set_axis_off()


def gray_range(volume: np.ndarray) -> tuple[float, float]:
    """The values to draw black and white: the 1st and the 99th percentile."""
    step = max(1, round((volume.size / _SAMPLE) ** (1 / 3)))
    low, high = np.percentile(volume[..., ::step, ::step, ::step], (1, 99))
    return float(low), float(high)


def to_radiological(affine: torch.Tensor, *volumes: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """The first channels as arrays in LAS order, and the voxel size (mm) of their axes.

    Drawn, the patient's right is on the left, as radiologists look.
    """
    from nibabel import orientations

    stored = orientations.io_orientation(np.asarray(affine))
    turn = orientations.ornt_transform(stored, orientations.axcodes2ornt("LAS"))
    # Views: a whole-body CT is not copied for two slices.
    arrays = [orientations.apply_orientation(np.asarray(volume.detach().cpu())[0], turn) for volume in volumes]
    return arrays, axis_spacing(np.asarray(affine))[np.argsort(stored[:, 0])]


def slice_through(mask: np.ndarray) -> list[int]:
    """Per axis, the slice with the most foreground; the middle of an empty mask."""
    if not mask.any():
        return [extent // 2 for extent in mask.shape]
    return [int(mask.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 2), (0, 1))]
