"""Source folders as they come (Decathlon, LiTS, already prepared) read into one list of cases."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.dicom_files import volumes_of
from med3d_ext.io.files import SUFFIXES, is_image_name, read_json, stem, told_apart
from med3d_ext.io.image_files import is_nifti, nifti_header

logger = logging.getLogger("med3d_ext.data")

# Where label maps are in the layouts of this world: images of a folder are looked for elsewhere.
_LABEL_FOLDER = re.compile(r"(labels?|masks?|segmentations?)(tr|ts|val)?", re.IGNORECASE)
_LABEL_FILE = re.compile(r"segmentation-.*|laendo\..*|.*\.seg\.nrrd", re.IGNORECASE)
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


def read_source(
    folder: str | os.PathLike, classes: dict[int, str] | None = None, faults: Faults | None = None
) -> Source:
    """Read a folder in the Decathlon's layout (``dataset.json``) or in LiTS's (``volume-*.nii``, ``segmentation-*``).

    Args:
        folder: the source folder.
        classes: class names for a folder that states none (LiTS's layout).
        faults: collects the cases whose files are missing. Defaults to None, which refuses them.

    Raises:
        InputError: when the folder is missing or empty, has neither layout, or lists a file that does not exist.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"dataset_dir '{folder}' is not a folder; give the folder that holds dataset.json.")
    root = root.resolve()
    if (root / "dataset.json").is_file():
        return _read_decathlon(root, faults)
    if _files(root, "volume-*.nii*"):
        return _read_lits(root, classes or {0: "background", 1: "liver", 2: "tumor"}, faults)
    content = "is empty" if not any(root.iterdir()) else "holds neither dataset.json nor volume-*.nii[.gz] files"
    raise InputError(f"dataset_dir '{folder}' {content}; give a Decathlon folder or the folder of the LiTS volumes.")


def _read_decathlon(root: Path, faults: Faults | None) -> Source:
    path = root / "dataset.json"
    content = read_json(path)
    cases = []
    found = faults or Faults()
    for where, entry in listed_entries(path, content, is_labelled=lambda entry: "label" in entry):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise InputError(f"{where} has no path of an image with that of a label; complete it.")
        with found.caught():
            files = {key: str(existing_file(root / entry[key], path)) for key in ("image", "label")}
            cases.append({**entry, **files})
    _check_found(found, cases, faults)
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


def _check_found(found: Faults, cases: list[dict[str, Any]], faults: Faults | None) -> None:
    """Refuse missing files here, unless the caller collects them and some case is left."""
    if found.sentences and (faults is None or not cases):
        raise FaultyCases(found.sentences, len(found.sentences) + len(cases))


def listed_entries(
    path: Path, content: Mapping[str, Any], is_labelled: Callable[[Mapping[str, Any]], bool]
) -> list[tuple[str, Any]]:
    """The entries of a list of cases, each with what a message calls it.

    If the list gives a split, that is a ``validation`` or ``test`` with labels, each entry states where it is under
    ``given``; images without labels, as the Decathlon's ``test``, are not a split.

    Args:
        path: the list's file.
        content: its content.
        is_labelled: whether an entry has a label.

    Raises:
        InputError: there is no entry under ``training``, or only some of ``validation`` or ``test`` have a label.
    """
    lists: dict[str, list[Any]] = {}
    for name in SPLITS:
        entries = content.get(name) or []
        if not isinstance(entries, list):
            raise InputError(f"'{name}' of '{path}' must be a list of entries {{'image': ..., 'label': ...}}.")
        labelled = [isinstance(entry, Mapping) and is_labelled(entry) for entry in entries]
        if name == "training" or any(labelled):
            lists[name] = entries
        if name != "training" and any(labelled) and not all(labelled):
            raise InputError(
                f"entry {labelled.index(False)} under '{name}' of '{path}' has no label and others have; complete it, "
                "or list it elsewhere."
            )
    if not lists["training"]:
        raise InputError(f"'{path}' lists no cases under 'training'; add entries {{'image': ..., 'label': ...}}.")
    return [
        (
            f"entry {number} under '{name}' of '{path}'",
            {**entry, "given": name} if len(lists) > 1 and isinstance(entry, Mapping) else entry,
        )
        for name, entries in lists.items()
        for number, entry in enumerate(entries)
    ]


def _read_lits(root: Path, classes: dict[int, str], faults: Faults | None) -> Source:
    cases = []
    found = faults or Faults()
    for image in sorted(_files(root, "volume-*.nii*"), key=lambda path: (len(path.name), path.name)):
        number = image.name.removeprefix("volume-")
        labels = _files(root, f"segmentation-{number.split('.')[0]}.nii*")
        if len(labels) > 1:  # several parts may count from 0, each with its labels
            labels = [label for label in labels if label.parent == image.parent] or labels
        with found.caught():
            if not labels:
                raise InputError(
                    f"'{image}' has no segmentation-{number} next to it; add the label or remove the volume."
                )
            if len(labels) > 1:
                raise InputError(
                    f"'{image}' has several labels, '{labels[0]}' and '{labels[1]}'; put its own next to it."
                )
            cases.append({"image": str(existing_file(image)), "label": str(existing_file(labels[0]))})
    _check_found(found, cases, faults)
    return Source(name=root.name, classes=classes, modality={0: "CT"}, cases=cases)


def _files(root: Path, pattern: str) -> list[Path]:
    """Files in any depth; Kaggle and some unzippers put volume-0.nii into a folder of that name."""
    return sorted(path for path in root.rglob(pattern) if not path.is_dir())


def existing_file(path: Path, listed_in: Path | None = None) -> Path:
    """The file itself, also where a symbolic link was unpacked as a text file that holds the link's target.

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
            target = path.parent / content.decode().strip()
            if os.path.isfile(target):  # unlike Path.is_file, no error for a text that is not a path at all
                return target.resolve()
    return path


def list_images(folder: str | os.PathLike, argument: str = "dataset_dir") -> list[dict[str, str]]:
    """The images of a folder for inference, as items: a file each, or the folder of a DICOM series.

    A file is itself. Of a Decathlon folder it is the content of ``imagesTs``, else of ``imagesTr``; of a folder of
    nodules that of ``images``. Of any other folder it is the image files in it and in its folders, of any depth, and
    every folder, itself included, that holds DICOM files of a scan. Results of this package and folders of label maps
    are left out, and so are hidden files. Nothing but names and first bytes is read: a damaged file is refused when it
    is loaded, and the others are not.

    Args:
        folder: the folder, or a file.
        argument: what the message calls it.

    Raises:
        InputError: when nothing is there.
    """
    return [{"image": image} for image, _ in _found(folder, argument)]


def named_images(
    inputs: Sequence[str | os.PathLike], argument: str = "dataset_dir"
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The images of several folders and files, each once, with a name that is fit for files and no other has.

    The name is the path from the folder that was given, without the format: ``patient_1/ct.nii.gz`` is
    ``patient_1_ct``, so that another patient changes nothing. Twins of one folder keep their format (``scan.mha``), and
    those of several inputs are told apart by the folders before them.

    Args:
        inputs: what :func:`list_images` takes.
        argument: what the message calls them.

    Returns:
        items with ``image`` and ``case``, the name; and the inputs that hold none, each with a sentence that says why.

    Raises:
        InputError: no input holds an image.
    """
    found: dict[str, str] = {}
    without: dict[str, str] = {}
    for path in inputs:
        try:
            for image, name in _found(path, argument):
                found.setdefault(os.path.abspath(image), name)
        except InputError as error:
            without[str(path)] = str(error)
    if not found:
        raise InputError(next(iter(without.values())))
    return [{"image": image, "case": name} for image, name in told_apart(found).items()], without


def _found(folder: str | os.PathLike, argument: str) -> list[tuple[str, str]]:
    """Images with their names: the path from ``folder`` without the format, its parts joined."""
    root = Path(folder).expanduser()
    if root.is_file():
        return [(str(existing_file(root)), stem(root))]
    if not root.is_dir():
        raise InputError(f"{argument} '{folder}' does not exist; give a folder of images or one image.")
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
        files += [path for path in images if not _LABEL_FILE.fullmatch(path.name) and not is_own_label_map(path)]
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


def is_own_label_map(path: Path) -> bool:
    """Whether a file is a result of this package, which says so in its header."""
    if not stem(path).endswith("_seg") or not is_nifti(path):
        return False
    try:
        return nifti_header(path).get_intent()[2] == "label map"
    except InputError:
        return False
