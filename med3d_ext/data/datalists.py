"""Source folders as they come (Decathlon, LiTS, already prepared) read into one list of cases."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_LINK_BYTES = 1024  # a link that was checked out as text is one short line; no image is this small


@dataclass(frozen=True)
class Source:
    """One source folder.

    Args:
        name: the folder's name; it is the name of the domain.
        classes: label value to class name, background included.
        modality: channel number to channel name.
        cases: dictionaries with absolute paths under ``image`` and ``label`` and whatever else the list states.
    """

    name: str
    classes: dict[int, str]
    modality: dict[int, str]
    cases: list[dict[str, Any]] = field(default_factory=list)


def read_source(folder: str | os.PathLike, classes: dict[int, str] | None = None) -> Source:
    """Read a folder in the Decathlon's layout (``dataset.json``) or in LiTS's (``volume-*.nii``, ``segmentation-*``).

    Args:
        folder: the source folder.
        classes: class names for a folder that states none (LiTS's layout).

    Raises:
        InputError: when the folder is missing or empty, has neither layout, or lists a file that does not exist.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"dataset_dir '{folder}' is not a folder; give the folder that holds dataset.json.")
    root = root.resolve()
    if (root / "dataset.json").is_file():
        return _read_decathlon(root)
    if any(root.rglob("volume-*.nii*")):
        return _read_lits(root, classes or {0: "background", 1: "liver", 2: "tumor"})
    content = "is empty" if not any(root.iterdir()) else "holds neither dataset.json nor volume-*.nii[.gz] files"
    raise InputError(f"dataset_dir '{folder}' {content}; give a Decathlon folder or the folder of the LiTS volumes.")


def _read_decathlon(root: Path) -> Source:
    path = root / "dataset.json"
    content = read_json(path)
    entries = content.get("training")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"'{path}' lists no cases under 'training'; add entries {{'image': ..., 'label': ...}}.")
    cases = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise InputError(f"entry {number} under 'training' of '{path}' has no image with a label; complete it.")
        files = {key: str(existing_file(root / entry[key], path)) for key in ("image", "label")}
        cases.append({**entry, **files})
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"'{path}' has no 'labels' table; add for example {{'0': 'background', '1': 'liver'}}.")
    try:
        classes = {int(value): str(name) for value, name in sorted(labels.items(), key=lambda item: int(item[0]))}
        modality = {int(channel): str(name) for channel, name in content.get("modality", {"0": "image"}).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"'{path}' must map numbers to names under 'labels' and 'modality', as {{'1': 'liver'}}; correct them."
        ) from error
    return Source(name=root.name, classes=classes, modality=modality, cases=cases)


def _read_lits(root: Path, classes: dict[int, str]) -> Source:
    cases = []
    for image in sorted(root.rglob("volume-*.nii*"), key=lambda path: (len(path.name), path.name)):
        number = image.name.removeprefix("volume-")
        labels = list(root.rglob(f"segmentation-{number.split('.')[0]}.nii*"))
        if not labels:
            raise InputError(f"'{image}' has no segmentation-{number} beside it; add the label or remove the volume.")
        cases.append({"image": str(existing_file(image)), "label": str(existing_file(labels[0]))})
    return Source(name=root.name, classes=classes, modality={0: "CT"}, cases=cases)


def existing_file(path: Path, listed_in: Path | None = None) -> Path:
    """The file itself, also where a symbolic link was unpacked as a text file that holds the link's target.

    Git without symbolic links, zip archives and some network drives write such text files.
    """
    if not path.is_file():
        where = f" (listed in '{listed_in}')" if listed_in else ""
        raise InputError(f"'{path}'{where} does not exist; restore the file or remove the entry.")
    if path.stat().st_size < _LINK_BYTES:
        content = path.read_bytes()
        if content and content.isascii() and b"\0" not in content:
            target = path.parent / content.decode().strip()
            if os.path.isfile(target):  # unlike Path.is_file, no error for a text that is no path at all
                return target.resolve()
    return path


def list_images(folder: str | os.PathLike, argument: str = "dataset_dir") -> list[dict[str, str]]:
    """The images of a folder for inference, as items: a file each, or the folder of a DICOM series.

    A file is itself. Of a Decathlon folder it is the content of ``imagesTs``, else of ``imagesTr``; of a folder of
    nodules that of ``images``. Of any other folder it is its image files and every folder in it, itself included, that
    holds DICOM files. Nothing but names and first bytes is read: a damaged file is refused when it is loaded, and the
    others are not.

    Args:
        folder: the folder, or a file.
        argument: what the message calls it.

    Raises:
        InputError: when nothing is there.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        return [{"image": str(existing_file(root))}]
    if not root.is_dir():
        raise InputError(f"{argument} '{folder}' does not exist; give a folder of images or one image.")
    for place in (root / "imagesTs", root / "imagesTr", root / "images"):
        if files := _image_files(place):
            return [{"image": path} for path in files]
    images = [*_image_files(root), *map(str, dicom_folders(root))]
    if not images:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{argument} '{folder}' holds no image ({kinds} or DICOM); give a folder of images.")
    return [{"image": image} for image in images]


def _image_files(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(IMAGE_SUFFIXES))
    # A link to nothing is for the reader to refuse, by its name.
    return [str(existing_file(path) if path.is_file() else path) for path in paths if not path.name.startswith(".")]


def dicom_folders(root: Path) -> list[Path]:
    """``root`` and the folders in it, of any depth, in which DICOM files lie."""
    return sorted(
        Path(folder)
        for folder, _, names in os.walk(root)
        if any(_is_dicom(Path(folder, name)) for name in sorted(names) if name != "DICOMDIR")
    )


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name.endswith(IMAGE_SUFFIXES) or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with suppress(OSError), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False
