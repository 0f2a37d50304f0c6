"""What a prediction was asked for: a case for each image, with a name that no other case has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from med3d_ext.data.datalists import named_images


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
    """The images that inputs stand for, each once, named by :func:`med3d_ext.data.datalists.named_images`.

    Args:
        inputs: files, folders of them, folders of DICOM series.

    Returns:
        the cases; and the inputs that hold none, each with a sentence that says why.

    Raises:
        InputError: no input holds an image.
    """
    items, without = named_images(inputs, "INPUT")
    return [Case(item["case"], item["image"]) for item in items], without
