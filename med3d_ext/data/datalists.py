"""The images of a folder for inference, and what a folder of labelled cases is read into."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.dicom_files import volumes_of
from med3d_ext.io.files import SUFFIXES, is_image_name, read_json, sha256, stem, told_apart
from med3d_ext.io.image_files import is_nifti, nifti_header

logger = logging.getLogger("med3d_ext.data")

# Where label maps are in the layouts of this world: images of a folder are looked for elsewhere.
_LABEL_FOLDER = re.compile(r"(labels?|masks?|segmentations?)(tr|ts|val)?", re.IGNORECASE)
_LABEL_FILE = re.compile(r"segmentation-.*|laendo\..*|.*\.seg\.nrrd", re.IGNORECASE)
_LINK_BYTES = 1024  # a link that was checked out as text is one short line; no image is this small


@dataclass(frozen=True)
class Source:
    """One folder of labelled cases, whatever its layout."""

    name: str  # the folder's; it is the name of the domain
    classes: dict[int, str]  # label value to name, background included
    modality: dict[int, str]  # channel number to name; empty if nothing names it
    # With absolute paths under image and label, and whatever else the list states. A list under image is a file for
    # each channel, see med3d_ext.tools.layouts.table.one_channel.
    cases: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""  # what the data set calls itself
    merge: Mapping[int, int] = field(default_factory=dict)  # label value to the one that it counts as
    layout: str = ""  # its name in med3d_ext.tools.layouts.table
    channel: int | str | None = None  # the one to take of each file, or all; None of 3D files
    chosen: tuple[int | str, str] | None = None  # of several channels, number and name of the one that is taken


def existing_file(path: Path, listed_in: Path | None = None) -> Path:
    """The file itself, also if a symbolic link was unpacked as a text file that holds the link's target.

    Git without symbolic links, zip archives and some network drives write such text files. A folder with the name of an
    image, as some unzippers make, stands for the one image in it.
    """
    if path.is_dir():
        inside = [file for file in path.iterdir() if is_image_name(file)]
        path = inside[0] if len(inside) == 1 else path
    if not path.is_file():
        where = f" (listed in '{listed_in}')" if listed_in else ""
        raise InputError(f"'{path}'{where} does not exist; restore the file or remove the entry.")
    if path.stat().st_size < _LINK_BYTES:
        content = path.read_bytes()
        if content and content.isascii() and b"\0" not in content:
            target = path.resolve().parent / content.decode().strip()
            if os.path.isfile(target):  # unlike Path.is_file, no error for a text that is not a path at all
                return target.resolve()
    return path


def list_images(folder: str | os.PathLike, argument: str = "dataset_dir") -> list[dict[str, str]]:
    """The images of a folder for inference, as items: a file each, or the folder of a DICOM series.

    A file is itself. Of a Decathlon folder it is the content of ``imagesTs``, else of ``imagesTr``; of a folder of
    nodules that of ``images``. Of any other folder it is the image files in it and in its folders, of any depth, and
    every folder, itself included, that holds DICOM files of a scan. Results of this package, folders of label maps and
    hidden files are left out. Nothing but names and first bytes is read: a damaged file is refused when it is loaded.

    Args:
        folder: the folder, or a file.
        argument: what the message calls it.

    Raises:
        InputError: when nothing is there.
    """
    return [{"image": image} for image, _ in _found(folder, argument)]


def named_images(
    inputs: Sequence[str | os.PathLike], argument: str = "dataset_dir", channels: int = 1
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The images of several folders and files, each once, with a name that is fit for files and no other has.

    The name is the path from the folder that was given, without the format: ``patient_1/ct.nii.gz`` is
    ``patient_1_ct``, so that another patient changes nothing. Twins of one folder keep their format (``scan.mha``), and
    those of several inputs are told apart by the folders before them.

    ``channels`` is how many the network takes: with several, a folder may hold a file for each.

    Returns:
        items with ``image`` and ``case``, the name; and the inputs that hold none, each with a sentence that says why.
    """
    found: dict[str, str] = {}
    without: dict[str, str] = {}
    for path in inputs:
        try:
            for image, name in _found(path, argument, channels):
                found.setdefault(os.path.abspath(image), name)
        except InputError as error:
            without[str(path)] = str(error)
    if not found:
        raise InputError(next(iter(without.values())))
    return [{"image": image, "case": name} for image, name in told_apart(found).items()], without


def _found(folder: str | os.PathLike, argument: str, taken: int = 1) -> list[tuple[str, str]]:
    """Images with their names: the path from ``folder`` without the format, its parts joined."""
    root = Path(folder).expanduser()
    if root.is_file():
        return [(str(existing_file(root)), stem(root))]
    if not root.is_dir():
        raise InputError(f"{argument} '{folder}' does not exist; give a folder of images or one image.")
    # Of nnU-Net's folders with a file for each channel nothing says here which one the network was trained on.
    for path in [root / "dataset.json"] + [root.parent / "dataset.json"] * root.name.startswith("images"):
        channels = read_json(path).get("channel_names") if path.is_file() else None
        if isinstance(channels, Mapping) and len(channels) > 1 and taken == 1:
            known = ", ".join(f"{number.zfill(4)}: {name}" for number, name in channels.items())
            raise InputError(
                f"'{root}' has a file for each channel ({known}), and the network takes one; give the files of the one "
                "that it was trained on, as imagesTs/*_0000.nii.gz, or a folder of them."
            )
    for place in (root / "imagesTs", root / "imagesTr", root / "images"):
        if place.is_dir() and (files := [path for path in sorted(place.iterdir()) if _is_image(path)]):
            return [(_linked(path), stem(path)) for path in files]
    files, scans, labels = [], [], []
    for parent, inner, names in os.walk(root):
        labels += [Path(parent, name) for name in inner if _LABEL_FOLDER.fullmatch(name)]
        inner[:] = sorted(name for name in inner if not name.startswith(".") and not _LABEL_FOLDER.fullmatch(name))
        own = [Path(parent, name) for name in sorted(names)]
        images = [path for path in own if _is_image(path)]
        labels += [path for path in images if _LABEL_FILE.fullmatch(path.name)]
        files += [path for path in images if not _LABEL_FILE.fullmatch(path.name) and not _is_own_label_map(path)]
        scans += volumes_of(Path(parent), [path.name for path in own if not is_image_name(path)])
    if not files and not scans:
        kinds = ", ".join(SUFFIXES)
        raise InputError(f"{argument} '{folder}' holds no image ({kinds} or DICOM); give a folder of images.")
    if labels:
        logger.warning(f"label maps in '{folder}' are not images and are left out ({len(labels)}, '{labels[0]}' first)")
    files.sort(key=lambda path: (len(path.parts), path))
    named = [(_linked(path), path.parent / stem(path)) for path in files]
    named += [(str(path), path.parent / stem(path) if path.is_file() else path) for path in sorted(scans)]
    return [(image, "_".join(path.relative_to(root).parts) or root.resolve().name) for image, path in named]


def _is_image(path: Path) -> bool:
    return is_image_name(path) and not path.is_dir()


def _linked(path: Path) -> str:
    # A link to nothing is for the reader to refuse, by its name.
    return str(existing_file(path) if path.is_file() else path)


def _is_own_label_map(path: Path) -> bool:
    """Whether a file is a result of this package, which says so in its header."""
    try:
        return stem(path).endswith("_seg") and is_nifti(path) and nifti_header(path).get_intent()[2] == "label map"
    except InputError:
        return False


def scans_without_target(folder: str | None, domain: str) -> list[dict[str, Any]]:
    """Training items of whole scans without the target: ``label`` is None, which LoadVolumed fills with zeros.

    A network that has only seen livers finds one in a head, too. They are only trained on: a Dice of nothing
    says nothing.

    Args:
        folder: image files; None gives no items. A DICOM series is refused: it has no hash for the card.
        domain: the domain that they count as.
    """
    images = [] if folder is None else [item["image"] for item in list_images(folder, "negatives")]
    for image in images:
        if Path(image).is_dir():
            raise InputError(f"negatives must be image files, and '{image}' is a DICOM series; convert it to NIfTI.")
    facts = {"label": None, "domain": domain, "label_sha256": ""}  # the keys of other items, or they make no batch
    return [{"image": image, **facts, "sha256": sha256(image)} for image in images]
