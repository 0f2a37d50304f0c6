"""Source folders as they come (Decathlon, LiTS, already prepared) read into one list of cases, and the seeded split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.files import read_json

SPLITS = ("training", "validation", "test")
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


@cache
def held_out() -> frozenset[str]:
    """SHA-256 of the images that are test cases wherever they occur, so that no released encoder has seen them."""
    content = read_json(Path(__file__).with_name("held_out.json"))
    return frozenset(content["sha256"])


def split_cases(domains: dict[str, list[dict[str, Any]]], seed: int = 0, share: float = 0.1) -> None:
    """Give every case a ``split``: 90 % training and 10 % test per domain (paper section 4.1), by subject.

    A subject is the case's ``subject`` where the list states one, else the content of its image: one scan that serves
    several domains is on one side in all of them. Images in ``held_out.json`` are test; a domain with none of them
    gives ``max(1, round(share * n))`` cases, a domain with a single subject only trains. Of the cases that are left
    for training, the same share (from five cases on) becomes ``validation``, for the choice of the best epoch. The
    order of the domains and of their cases does not matter.

    Args:
        domains: domain name to cases; each case needs ``sha256``. The key ``split`` is written into each case.
        seed: seed of the draw.
        share: share of the test cases and of the validation cases.
    """
    subjects = {name: {_subject(case) for case in domains[name]} for name in sorted(domains)}
    reserved = {_subject(case) for cases in domains.values() for case in cases if case["sha256"] in held_out()}
    test, validation = set(reserved), set[str]()
    for members in subjects.values():
        if len(members) > 1 and not members & reserved:
            test |= _draw(members, test, share, seed)
    for members in subjects.values():
        if len(members - test) >= 10:
            validation |= _draw(members - test, validation, share, seed + 1)
    for cases in domains.values():
        for case in cases:
            subject = _subject(case)
            case["split"] = "test" if subject in test else "validation" if subject in validation else "training"


def _draw(subjects: set[str], chosen: set[str], share: float, seed: int) -> set[str]:
    """What ``subjects`` lack of their share in ``chosen``, which other domains with the same scans have drawn."""
    lacking = max(1, round(share * len(subjects))) - len(subjects & chosen)
    order = sorted(subjects - chosen, key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest())
    return set(order[: max(0, lacking)])


def _subject(case: dict[str, Any]) -> str:
    return str(case.get("subject", case["sha256"]))


def list_images(folder: str | os.PathLike, suffixes: Sequence[str] = (".nii", ".nii.gz")) -> list[dict[str, str]]:
    """The images of a folder for inference: the file itself, a Decathlon folder's ``imagesTs``, else all its images.

    Raises:
        InputError: when nothing is there.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        return [{"image": str(existing_file(root))}]
    if not root.is_dir():
        raise InputError(f"dataset_dir '{folder}' does not exist; give a folder of images or one image.")
    places = [root / "imagesTs", root / "imagesTr", root]
    for place in places:
        files = sorted(path for path in place.glob("*") if path.name.endswith(tuple(suffixes)))
        files = [path for path in files if not path.name.startswith("._")]
        if files:
            return [{"image": str(existing_file(path))} for path in files]
    raise InputError(f"dataset_dir '{folder}' holds no image ({', '.join(suffixes)}); give a folder of images.")
