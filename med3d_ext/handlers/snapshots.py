"""How one validation case is segmented after some epochs: what figure 1 of the paper shows side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from med3d_ext.handlers.overlay import ras_order, slice_through, to_radiological
from med3d_ext.io.files import write_atomically
from med3d_ext.run.rank import rank


class ValidationSnapshots:
    """Write ``epoch_<epoch>.npz``: one axial slice of the first validation case, with label and prediction.

    The slice is the one with most of the label, in radiological view, on the grid of the validation. The files hold
    ``image`` (float16), ``label`` and ``prediction`` (uint8), each (rows, columns), the pixels' ``aspect`` (height by
    width) and the ``case``. An output without a volume, a classifier's, gives none. Rank 0 writes.

    An overlay adds it to any bundle: ``{"+validate::handlers": [{"_target_": ...}]}``.

    Args:
        output_dir: folder of the files, made where missing.
        epochs: the epochs to keep, of those that are validated.
    """

    def __init__(self, output_dir: str, epochs: Sequence[int]) -> None:
        self.folder = Path(output_dir)
        self.epochs = frozenset(epochs)

    def attach(self, engine: Any) -> None:
        """Register with the evaluator that validates."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=_is_first), self.keep)

    def keep(self, engine: Any) -> None:
        """Write the epoch's file, of the first batch."""
        output = engine.state.output
        if rank() != 0 or engine.state.epoch not in self.epochs or not isinstance(output, list):
            return
        item = output[0]
        if any(torch.as_tensor(item[key]).ndim != 4 for key in ("image", "label", "pred")):
            return
        with write_atomically(self.folder / f"epoch_{engine.state.epoch:04d}.npz") as file:
            np.savez_compressed(file, **snapshot(item["image"], item["label"], item["pred"]))


def snapshot(image: Any, label: torch.Tensor, prediction: torch.Tensor) -> dict[str, Any]:
    """The arrays of a file.

    Args:
        image: channel-first volume with its affine, of which the first channel is shown.
        label: label map on the same grid, or its classes one-hot.
        prediction: the same.
    """
    maps = [volume.argmax(0, keepdim=True) if len(volume) > 1 else volume for volume in (label, prediction)]
    image_array, label_array, prediction_array = (to_radiological(v, image.affine) for v in (image, *maps))
    number = slice_through(label_array > 0)[2]
    spacing = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)[ras_order(image.affine)]
    cuts = [volume[:, :, number].T for volume in (image_array, label_array, prediction_array)]
    return {
        "image": cuts[0].astype(np.float16),
        "label": cuts[1].astype(np.uint8),
        "prediction": cuts[2].astype(np.uint8),
        "aspect": float(spacing[1] / spacing[0]),
        "case": os.path.basename(str(image.meta.get("filename_or_obj", ""))),
    }


def _is_first(engine: Any, iteration: int) -> bool:
    return iteration == 1
