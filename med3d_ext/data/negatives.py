"""Scans that are known to hold no target: a network that has only seen livers finds one in a head, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import list_images
from med3d_ext.errors import InputError
from med3d_ext.io.files import sha256


def scans_without_target(folder: str | None, domain: str) -> list[dict[str, Any]]:
    """Training items of whole scans whose label is empty: ``label`` is None, which LoadVolumed fills with zeros.

    They are trained on only, never tested on: a Dice of nothing says nothing.

    Args:
        folder: image files; None gives no items.
        domain: the domain that they count as.

    Raises:
        InputError: the folder holds no image, or a DICOM series, which has no hash for the card.
    """
    if folder is None:
        return []
    images = [item["image"] for item in list_images(folder, "negatives")]
    for image in images:
        if Path(image).is_dir():
            raise InputError(f"negatives must be image files, and '{image}' is a DICOM series; convert it to NIfTI.")
    facts = {"label": None, "domain": domain, "label_sha256": ""}  # the keys of other items, or they make no batch
    return [{"image": image, **facts, "sha256": sha256(image)} for image in images]
