"""What a prediction was asked for: a case for each image, with a name that no other case has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from med3d_ext.data.datalists import IMAGE_SUFFIXES, list_images
from med3d_ext.errors import InputError


@dataclass(frozen=True)
class Case:
    """One image to segment.

    Args:
        name: what its results are called.
        image: its file, or the folder of its DICOM series.
    """

    name: str
    image: str


def collect_cases(inputs: Sequence[str]) -> tuple[list[Case], dict[str, str]]:
    """The images that inputs stand for, each once.

    Args:
        inputs: files, folders of them, folders of DICOM series.

    Returns:
        the cases; and the inputs that hold none, each with a sentence that says why.

    Raises:
        InputError: no input holds an image.
    """
    images: dict[str, None] = {}
    without: dict[str, str] = {}
    for path in inputs:
        try:
            images |= {os.path.abspath(item["image"]): None for item in list_images(path, "INPUT")}
        except InputError as error:
            without[path] = str(error)
    if not images:
        raise InputError(next(iter(without.values())))
    return [Case(name, image) for image, name in _names(list(images)).items()], without


def _names(images: Sequence[str]) -> dict[str, str]:
    """A name for each image: its file's, with as many of the folders before it as tell twins apart."""
    names = {image: _stem(Path(image).name) for image in images}
    stems = Counter((Path(image).parent, name) for image, name in names.items())
    for image, name in names.items():
        if stems[Path(image).parent, name] > 1:  # one folder holds scan.nii.gz and scan.mha
            names[image] = Path(image).name
    for depth in range(2, max(len(Path(image).parts) for image in images)):
        counts = Counter(names.values())
        for image, name in names.items():
            if counts[name] > 1:
                names[image] = f"{Path(image).parts[-depth]}_{name}"
    return names


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), name)
