"""Layouts of labelled volumes: the Decathlon's, nnU-Net's raw folders, plain pairs, LiTS's, the 2018 left atrium's."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import SUFFIXES, is_image_name, read_json, stem
from med3d_ext.tools.label_files import case_name
from med3d_ext.transforms.load import load_volume
from med3d_ext.transforms.values import whole_values

logger = logging.getLogger("med3d_ext.prepare")
LIST = "dataset.json"
PARTS = {"training": "Tr", "validation": "Val", "test": "Ts"}  # of imagesTr, labelsTr; the others give a split
PAIRS = (("imagesTr", "labelsTr"), ("images", "labels"))
ATRIUM_SUFFIXES = (".nrrd", ".nii.gz", ".nii")
SPLIT_WORDS = {"train": "training", "val": "validation", "valid": "validation", "testing": "test"}
SPLIT_WORDS |= {split: split for split in SPLITS}
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's CASE_0000

# The Decathlon


def read_decathlon(root: Path, output: Path | None, faults: Faults) -> Source:
    """``dataset.json`` lists image and label of each case; images that nnU-Net split into channels are found, too."""
    path = root / LIST
    content = read_json(path)
    cases = []
    for where, entry in listed_entries(path, content, is_labelled=lambda entry: "label" in entry):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise InputError(f"{where} has no path of an image with that of a label; complete it.")
        with faults.caught():
            image = _channel_files(root / entry["image"], path)
            cases.append({**entry, "image": image, "label": str(existing_file(root / entry["label"], path))})
    labels = _labels(path, content, "{'0': 'background', '1': 'liver'}")
    try:
        classes = {int(value): str(name) for value, name in sorted(labels.items(), key=lambda item: int(item[0]))}
        modality = {int(channel): str(name) for channel, name in content.get("modality", {"0": "image"}).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"'{path}' must map numbers to names under 'labels' and 'modality', as {{'1': 'liver'}}; correct them."
        ) from error
    return Source(root.name, classes, modality, cases, str(content.get("name", "")))


def _labels(path: Path, content: Mapping[str, Any], example: str) -> dict[str, Any]:
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"'{path}' has no 'labels' table; add for example {example}.")
    return labels


def _channel_files(image: Path, listed_in: Path) -> str | list[str]:
    """The file, or the files CASE_0000, CASE_0001 in its place, as nnU-Net's first version splits a listed image."""
    ending = image.name[len(stem(image)) :]
    if not image.exists() and (found := sorted(image.parent.glob(f"{stem(image)}_[0-9][0-9][0-9][0-9]{ending}"))):
        return [str(existing_file(path)) for path in found] if len(found) > 1 else str(existing_file(found[0]))
    return str(existing_file(image, listed_in))


def listed_entries(
    path: Path, content: Mapping[str, Any], is_labelled: Callable[[Mapping[str, Any]], bool]
) -> list[tuple[str, Any]]:
    """The entries of a list of cases, each with what a message calls it.

    If the list gives a split, by a ``validation`` or ``test`` with labels or by ``split`` of each entry, each entry
    states under ``given`` where it is; images without labels, as the Decathlon's ``test``, are no split.
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
    named = [
        (f"entry {number} under '{name}' of '{path}'", name, entry)
        for name, entries in lists.items()
        for number, entry in enumerate(entries)
    ]
    by_entry = any(isinstance(entry, Mapping) and "split" in entry for _, _, entry in named)
    if not by_entry and len(lists) == 1:
        return [(where, entry) for where, _, entry in named]
    found = []
    for where, side, entry in named:
        if by_entry and isinstance(entry, Mapping):
            listed, side = side, SPLIT_WORDS.get(str(entry.get("split")).lower(), "")
            if not side:
                stated = f"the split '{entry['split']}'" if "split" in entry else "no split and others have one"
                raise InputError(f"{where} has {stated}; 'split' must be one of {', '.join(SPLITS)}.")
            if len(lists) > 1 and side != listed:
                raise InputError(
                    f"{where} has the split '{entry['split']}'; list it under '{side}', or drop its 'split'."
                )
        found.append((where, {**entry, "given": side} if isinstance(entry, Mapping) else entry))
    return found


# nnU-Net's raw folders


def is_nnunet(root: Path) -> bool:
    """Whether ``dataset.json`` is nnU-Net's: it names channels or the file ending instead of listing the cases."""
    with suppress(InputError):  # a damaged list is for the reader to refuse
        return (root / LIST).is_file() and bool({"channel_names", "file_ending"} & read_json(root / LIST).keys())
    return False


def read_nnunet(root: Path, output: Path | None, faults: Faults) -> Source:
    """``imagesTr/CASE_0000.nii.gz`` and on, a file for each channel, with ``labelsTr/CASE.nii.gz``.

    ``labelsTs`` next to ``imagesTs`` makes these the test cases; without labels they are no cases.
    """
    path = root / LIST
    content = read_json(path)
    channels: dict[int, str] = {}
    with suppress(ValueError, AttributeError):
        names = content.get("channel_names", content.get("modality"))
        channels = {int(number): str(name) for number, name in names.items()}  # type: ignore[union-attr]
    if not channels or sorted(channels) != list(range(len(channels))):
        raise InputError(
            f"'{path}' must number its channels from 0 on under 'channel_names', as {{'0': 'CT'}}; correct it."
        )
    classes = _named_values(path, content)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise InputError(
            f"'{path}' has the file_ending '{ending}'; volumes in {', '.join(SUFFIXES)} can be read: convert them."
        )
    if not isinstance(content.get("dataset"), dict):
        cases = _cases_of_folders(root, PAIRS[0], faults, ending, len(channels))
        count, training = content.get("numTraining"), sum(case.get("given", "training") == "training" for case in cases)
        if not faults.sentences and isinstance(count, int) and count != training:
            raise InputError(
                f"'{path}' has numTraining {count}, and imagesTr and labelsTr hold {training} cases; restore the "
                "missing files, or correct the number."
            )
        return Source(root.name, classes, channels, cases, str(content.get("name", "")))
    cases = []
    for name, entry in content["dataset"].items():  # files anywhere, as nnU-Net's own option
        with faults.caught():
            if not isinstance(entry, dict) or not entry.get("images") or "label" not in entry:
                raise InputError(f"'{name}' under 'dataset' of '{path}' needs 'images' and 'label'; complete it.")
            if len(entry["images"]) != len(channels):
                raise InputError(
                    f"'{name}' under 'dataset' of '{path}' has {len(entry['images'])} images for the "
                    f"{len(channels)} channels of 'channel_names'; correct it."
                )
            files = [existing_file(root / image, path) for image in entry["images"]]
            cases.append(_case(files, existing_file(root / entry["label"], path)))
    return Source(root.name, classes, channels, cases, str(content.get("name", "")))


def _named_values(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """nnU-Net's ``labels``, name to number, as number to name."""
    classes: dict[int, str] = {}
    for name, value in _labels(path, content, "{'background': 0, 'liver': 1}").items():
        if isinstance(value, list | tuple):
            raise InputError(
                f"'{path}' makes the region '{name}' of the values {list(value)}; regions are not trained here: give "
                "each value a name of its own, and merge values by 'merge' in domains.json."
            )
        if name == "ignore":
            raise InputError(f"'{path}' has an 'ignore' label, which is not trained around here; remove it.")
        if isinstance(value, bool) or not str(value).isdigit():
            raise InputError(f"'{path}' must give '{name}' under 'labels' a whole number, got {value!r}; correct it.")
        if classes.setdefault(int(value), str(name)) != name:
            raise InputError(f"'{path}' gives '{classes[int(value)]}' and '{name}' the number {value}; correct one.")
    return dict(sorted(classes.items()))


# Folders of images and labels


def pair_of(root: Path) -> tuple[str, str] | None:
    """The names of a folder of images and of one of labels, if both are there."""
    return next((pair for pair in PAIRS if all((root / name).is_dir() for name in pair)), None)


def read_pairs(root: Path, output: Path | None, faults: Faults) -> Source:
    """``images/`` and ``labels/``, or ``imagesTr/`` and ``labelsTr/``: a label has its image's name.

    It may end with ``_seg``, ``_label`` and so on, and images may be split into nnU-Net's channels. ``imagesTs`` with
    ``labelsTs`` are the test cases. The classes are the values of the labels, which are read for it.
    """
    folders = pair_of(root) or PAIRS[1]

    def label_values(path: str) -> set[int]:
        return set(map(int, np.unique(whole_values(load_volume(path).as_tensor()[0].numpy(), path))))

    with ThreadPoolExecutor(2) as pool:
        cases = _cases_of_folders(root, folders, faults)
        found = [(case, pool.submit(label_values, case["label"])) for case in cases]
    good, values = [], {0}
    for case, each in found:
        with faults.caught():
            values |= each.result()
            good.append(case)
    if good and values == {0}:
        raise InputError(
            f"the labels in '{root / folders[1]}' hold nothing but 0, the background; give labels of a target."
        )
    classes = {value: f"label {value}" if value else "background" for value in sorted(values)}
    logger.info(f"'{root}' has no {LIST}: its classes are the values of the labels, {sorted(values)}")
    return Source(root.name, classes, {}, good)


def _cases_of_folders(
    root: Path, names: tuple[str, str], faults: Faults, ending: str = "", channels: int = 0
) -> list[dict[str, Any]]:
    """The cases of two folders, and of imagesVal and imagesTs with labels, each then with its side of the split."""
    folders = {split: (root / f"images{part}", root / f"labels{part}") for split, part in PARTS.items()}
    if names != PAIRS[0]:
        folders = {"training": (root / names[0], root / names[1])}
    parts = {
        split: pair
        for split, pair in folders.items()
        if split == "training" or (_volumes(pair[1]) and (channels or _volumes(pair[0])))
    }
    cases = []
    for split, (images, labels) in parts.items():
        found = _pairs(images, labels, faults, ending, channels)
        cases += [{**case, "given": split} if len(parts) > 1 else case for case in found]
    return cases


def _pairs(images: Path, labels: Path, faults: Faults, ending: str, channels: int) -> Iterator[dict[str, Any]]:
    """Images with the labels of their names: with ``channels``, their number, as nnU-Net names them, else freely."""
    found = _volumes(images)
    if not found:
        raise InputError(f"'{images}' holds no image ({', '.join(SUFFIXES)}); put the images of '{labels}' there.")
    if not any(path.name.endswith(ending) for path in found):
        raise InputError(
            f"'{images.parent / LIST}' has the file_ending '{ending}', and no file of '{images}' ends so "
            f"('{found[0].name}' does not); correct it."
        )
    by_name: dict[str, Path] = {}
    for path in (path for path in _volumes(labels) if path.name.endswith(ending)):
        with faults.caught():
            if (other := by_name.setdefault(stem(path) if channels else case_name(path), path)) != path:
                raise InputError(f"'{other}' and '{path}' are labels of one image; remove one.")
    cases: dict[str, list[Path]] = {}
    for path in found:
        match = _CHANNEL.fullmatch(stem(path))
        numbered = match[1] if match else ""
        names = [numbered] if channels else [stem(path), re.sub(r"[_.](image|img)$", "", stem(path)), numbered]
        with faults.caught():
            if not path.name.endswith(ending):
                raise InputError(f"'{path}' does not end with '{ending}', the file_ending of {LIST}; convert it.")
            if channels and match is None:
                raise InputError(f"'{path}' has no channel number as 'CASE_0000{ending}' has; rename it.")
            if channels and match is not None and int(match[2]) >= channels:
                raise InputError(
                    f"'{path}' is channel {int(match[2])}, and 'channel_names' of {LIST} has {channels}; add its name "
                    "or remove the file."
                )
            name = next((name for name in names if name in by_name), None)
            if name is None:
                wanted = labels / (f"{numbered}{ending}" if channels else path.name)
                raise InputError(f"'{path}' has no label '{wanted}'; add the label or remove the image.")
            cases.setdefault(name, []).append(path)
    most = max(map(len, cases.values()), default=1)
    for name in sorted(cases) if channels else cases:
        files = cases[name]
        with faults.caught():
            for file in (images / f"{name}_{number:04d}{ending}" for number in range(channels)):
                if file not in files:
                    raise InputError(f"'{file}' does not exist, a channel of '{name}'; restore it or remove the case.")
            if len(files) != most or (most > 1 and not all(_CHANNEL.fullmatch(stem(file)) for file in files)):
                raise InputError(
                    f"'{by_name[name]}' is the label of {len(files)} images ('{files[0]}'), and others of {most}; "
                    "a case has one image, or each channel as CASE_0000, CASE_0001."
                )
            yield _case([existing_file(file) for file in files], existing_file(by_name[name]))
    for name in sorted(by_name.keys() - cases.keys()):
        with faults.caught():
            wanted = images / (f"{name}_0000{ending}" if channels else name)
            raise InputError(f"'{by_name[name]}' has no image '{wanted}'; restore it or remove the label.")


def _case(images: list[Path], label: Path) -> dict[str, Any]:
    return {"image": [str(path) for path in images] if len(images) > 1 else str(images[0]), "label": str(label)}


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image_name(path)) if folder.is_dir() else []


def read_lits(root: Path, output: Path | None, faults: Faults) -> Source:
    """``volume-N.nii`` with ``segmentation-N.nii``, in any sub-folder: Kaggle and some unzippers make folders."""
    cases = []
    files = sorted(path for path in root.rglob("*-*.nii*") if not path.is_dir())
    images, masks = ([path for path in files if path.name.startswith(name)] for name in ("volume-", "segmentation-"))
    for image in sorted(images, key=lambda path: (len(path.name), path.name)):
        number = image.name.removeprefix("volume-")
        labels = [path for path in masks if path.name.startswith(f"segmentation-{number.split('.')[0]}.nii")]
        if len(labels) > 1:  # several parts may count from 0, each with its labels
            labels = [label for label in labels if label.parent == image.parent] or labels
        with faults.caught():
            if not labels:
                raise InputError(
                    f"'{image}' has no segmentation-{number} next to it; add the label or remove the volume."
                )
            if len(labels) > 1:
                raise InputError(
                    f"'{image}' has several labels, '{labels[0]}' and '{labels[1]}'; put its own next to it."
                )
            cases.append(_case([existing_file(image)], existing_file(labels[0])))
    return Source(root.name, {0: "background", 1: "liver", 2: "tumor"}, {0: "CT"}, cases)


def atria(folder: Path) -> list[Path]:
    """The images of its patients' folders, in the folder or in "Training Set" or "Testing Set" there, no deeper."""
    patterns = [f"{place}/lgemri{suffix}" for place in ("*", "*[sS]et/*") for suffix in ATRIUM_SUFFIXES]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def read_left_atrium(root: Path, output: Path | None, faults: Faults) -> Source:
    """A folder for each patient with ``lgemri.nrrd`` and ``laendo.nrrd``; the challenge's test part has no labels."""
    cases = []
    for image in atria(root):
        labels = [path for suffix in ATRIUM_SUFFIXES if (path := image.with_name(f"laendo{suffix}")).is_file()]
        if labels:
            case = _case([existing_file(image)], existing_file(labels[0]))
            cases.append({**case, "subject": image.parent.name})
    if not cases:
        raise InputError(f"'{root}' has lgemri files and no laendo file next to any of them; add the labels.")
    # The challenge's labels are 0 and 255; copies with 0 and 1 exist.
    classes = {0: "background", 1: "left atrium", 255: "left atrium"}
    return Source(root.name, classes, {0: "MRI"}, cases, "left atrium", {255: 1})
