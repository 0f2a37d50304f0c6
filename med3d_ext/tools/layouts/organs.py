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
from med3d_ext.transforms.labels import whole_values
from med3d_ext.transforms.load import load_volume

logger = logging.getLogger("med3d_ext.prepare")
LIST = "dataset.json"
PARTS = {"training": "Tr", "validation": "Val", "test": "Ts"}  # of imagesTr, labelsTr; the others give a split
PAIRS = (("imagesTr", "labelsTr"), ("images", "labels"))
ATRIUM_SUFFIXES = (".nrrd", ".nii.gz", ".nii")
SPLIT_WORDS = {"train": "training", "val": "validation", "valid": "validation", "testing": "test"} | dict(
    zip(SPLITS, SPLITS)
)
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's CASE_0000

# The Decathlon


def has_list(root: Path) -> bool:
    """Whether the folder has a ``dataset.json``."""
    return (root / LIST).is_file()


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
    return Source(root.name, classes, modality, cases, str(content.get("name", "")))


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

    Args:
        path: the list's file.
        content: its content.
        is_labelled: whether an entry has a label.

    Raises:
        InputError: there is no entry under ``training``, only some of ``validation`` or ``test`` have a label, or
            ``split`` is missing in some, is no split, or contradicts the list.
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
    return [
        (where, {**entry, "given": _given(where, name, entry, len(lists) > 1) if by_entry else name})
        if isinstance(entry, Mapping) and (by_entry or len(lists) > 1)
        else (where, entry)
        for where, name, entry in named
    ]


def _given(where: str, listed: str, entry: Mapping[str, Any], by_list: bool) -> str:
    """The side that an entry's ``split`` gives it."""
    side = SPLIT_WORDS.get(str(entry.get("split")).lower())
    if side is None:
        stated = f"the split '{entry['split']}'" if "split" in entry else "no split and others have one"
        raise InputError(f"{where} has {stated}; 'split' must be one of {', '.join(SPLITS)}.")
    if by_list and side != listed:
        raise InputError(f"{where} has the split '{entry['split']}'; list it under '{side}', or drop its 'split'.")
    return side


# nnU-Net's raw folders


def is_nnunet(root: Path) -> bool:
    """Whether ``dataset.json`` is nnU-Net's: it names channels or the file ending instead of listing the cases."""
    with suppress(InputError):  # a damaged list is for the reader to refuse
        return has_list(root) and bool({"channel_names", "file_ending"} & read_json(root / LIST).keys())
    return False


def read_nnunet(root: Path, output: Path | None, faults: Faults) -> Source:
    """``imagesTr/CASE_0000.nii.gz`` and on, a file for each channel, with ``labelsTr/CASE.nii.gz``.

    ``labelsTs`` next to ``imagesTs`` makes these the test cases; without labels they are no cases.

    Raises:
        InputError: ``dataset.json`` contradicts itself, or has regions or an ignored label.
    """
    path = root / LIST
    content = read_json(path)
    channels, classes = _channel_names(path, content), _named_values(path, content)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise InputError(
            f"'{path}' has the file_ending '{ending}'; volumes in {', '.join(SUFFIXES)} can be read: convert them."
        )
    cases: list[dict[str, Any]] = []
    if isinstance(content.get("dataset"), dict):  # files anywhere, as nnU-Net's own option
        for name, entry in content["dataset"].items():
            with faults.caught():
                if not isinstance(entry, dict) or not entry.get("images") or "label" not in entry:
                    raise InputError(f"'{name}' under 'dataset' of '{path}' needs 'images' and 'label'; complete it.")
                if len(entry["images"]) != len(channels):
                    raise InputError(
                        f"'{name}' under 'dataset' of '{path}' has {len(entry['images'])} images for the "
                        f"{len(channels)} channels of 'channel_names'; correct it."
                    )
                files = [str(existing_file(root / image, path)) for image in entry["images"]]
                cases.append(_case(files, existing_file(root / entry["label"], path)))
    else:
        parts = {split: part for split, part in PARTS.items() if split == "training" or _holds(root / f"labels{part}")}
        for split, part in parts.items():
            found = _numbered_cases(root / f"images{part}", root / f"labels{part}", ending, channels, faults)
            cases += [{**case, "given": split} if len(parts) > 1 else case for case in found]
        count = content.get("numTraining")
        training = [case for case in cases if case.get("given", "training") == "training"]
        if not faults.sentences and isinstance(count, int) and count != len(training):
            raise InputError(
                f"'{path}' has numTraining {count}, and imagesTr and labelsTr hold {len(training)} cases; restore the "
                "missing files, or correct the number."
            )
    return Source(root.name, classes, channels, cases, str(content.get("name", "")))


def _channel_names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    names = content.get("channel_names", content.get("modality"))
    with suppress(ValueError, AttributeError):
        channels = {int(number): str(name) for number, name in names.items()}  # type: ignore[union-attr]
        if channels and sorted(channels) == list(range(len(channels))):
            return channels
    raise InputError(
        f"'{path}' must number its channels from 0 on under 'channel_names', as {{'0': 'CT'}}; correct it."
    )


def _named_values(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """nnU-Net's ``labels``, name to number, as number to name."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"'{path}' has no 'labels' table; add for example {{'background': 0, 'liver': 1}}.")
    classes: dict[int, str] = {}
    for name, value in labels.items():
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


def _numbered_cases(
    images: Path, labels: Path, ending: str, channels: Mapping[int, str], faults: Faults
) -> Iterator[dict[str, Any]]:
    """The cases of two folders: of each all channels and the label, by nnU-Net's names."""
    found = _volumes(images)
    if not any(path.name.endswith(ending) for path in found):
        got = f"no file of '{images}' ends so ('{found[0].name}' does not)" if found else f"'{images}' holds no image"
        raise InputError(f"'{images.parent / LIST}' has the file_ending '{ending}', and {got}; correct it.")
    names: set[str] = set()
    for path in found:
        match = _CHANNEL.fullmatch(stem(path))
        with faults.caught():
            if not path.name.endswith(ending):
                raise InputError(f"'{path}' does not end with '{ending}', the file_ending of {LIST}; convert it.")
            if match is None:
                raise InputError(f"'{path}' has no channel number as 'CASE_0000{ending}' has; rename it.")
            if int(match[2]) not in channels:
                raise InputError(
                    f"'{path}' is channel {int(match[2])}, and 'channel_names' of {LIST} has {len(channels)}; add its "
                    "name or remove the file."
                )
            names.add(match[1])
    for name in sorted(names):
        with faults.caught():
            label = labels / f"{name}{ending}"
            files = [images / f"{name}_{number:04d}{ending}" for number in channels]
            if not label.exists():
                raise InputError(f"'{files[0]}' has no label '{label}'; restore the label or remove the image.")
            for file in files:
                if not file.exists():
                    raise InputError(f"'{file}' does not exist, a channel of '{name}'; restore it or remove the case.")
            yield _case([str(existing_file(file)) for file in files], existing_file(label))
    for path in _volumes(labels):
        if path.name.endswith(ending) and stem(path) not in names:
            with faults.caught():
                raise InputError(f"'{path}' has no image '{images / stem(path)}_0000{ending}'; restore or remove it.")


def _case(images: list[str], label: Path) -> dict[str, Any]:
    return {"image": images if len(images) > 1 else images[0], "label": str(label)}


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image_name(path)) if folder.is_dir() else []


def _holds(folder: Path) -> bool:
    return bool(_volumes(folder))


# Plain folders of images and labels


def are_pairs(root: Path) -> bool:
    """Whether there is a folder of images next to a folder of labels."""
    return any((root / images).is_dir() and (root / labels).is_dir() for images, labels in PAIRS)


def read_pairs(root: Path, output: Path | None, faults: Faults) -> Source:
    """``images/`` and ``labels/``, or ``imagesTr/`` and ``labelsTr/``: a label has its image's name.

    It may end with ``_seg``, ``_label`` and so on, and images may be split into nnU-Net's channels. ``imagesTs`` with
    ``labelsTs`` are the test cases. The classes are the values of the labels, which are read for it.

    Raises:
        InputError: the labels hold nothing but 0, or there is no case.
    """
    images, labels = next(pair for pair in PAIRS if (root / pair[0]).is_dir() and (root / pair[1]).is_dir())
    parts = {"training": (root / images, root / labels)}
    if images.endswith("Tr"):
        others = {split: (root / f"images{part}", root / f"labels{part}") for split, part in PARTS.items()}
        parts |= {split: pair for split, pair in others.items() if all(map(_holds, pair))}
    cases = []
    for split, (folder, truth) in parts.items():
        if not _holds(folder):
            raise InputError(f"'{folder}' holds no image ({', '.join(SUFFIXES)}); put the images of '{truth}' there.")
        cases += [{**case, "given": split} if len(parts) > 1 else case for case in _pairs(folder, truth, faults)]
    values: set[int] = {0}
    with ThreadPoolExecutor(2) as pool:
        found = [(case, pool.submit(_label_values, case["label"])) for case in cases]
    good = []
    for case, each in found:
        with faults.caught():
            values |= each.result()
            good.append(case)
    if good and values == {0}:
        raise InputError(
            f"the labels in '{root / labels}' hold nothing but 0, the background; give labels of a target."
        )
    classes = {value: f"label {value}" if value else "background" for value in sorted(values)}
    logger.info(f"'{root}' has no {LIST}: its classes are the values of the labels, {sorted(values)}")
    return Source(root.name, classes, {}, good)


def _label_values(path: str) -> set[int]:
    return set(map(int, np.unique(whole_values(load_volume(path).as_tensor()[0].numpy(), path))))


def _pairs(images: Path, labels: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    by_name: dict[str, Path] = {}
    for path in _volumes(labels):
        with faults.caught():
            if (other := by_name.setdefault(case_name(path), path)) != path:
                raise InputError(f"'{other}' and '{path}' are labels of one image; remove one.")
    cases: dict[str, list[str]] = {}
    for path in _volumes(images):
        match = _CHANNEL.fullmatch(stem(path))
        names = [stem(path), re.sub(r"[_.](image|img)$", "", stem(path)), match[1] if match else ""]
        with faults.caught():
            name = next((name for name in names if name in by_name), None)
            if name is None:
                raise InputError(
                    f"'{path}' has no label of its name in '{labels}' ('{path.name}' or '{stem(path)}_seg', for "
                    "example); add it or remove the image."
                )
            cases.setdefault(name, []).append(str(existing_file(path)))
    channels = max(map(len, cases.values()), default=1)
    for name, files in cases.items():
        with faults.caught():
            if len(files) != channels or (channels > 1 and not all(_CHANNEL.fullmatch(stem(file)) for file in files)):
                raise InputError(
                    f"'{by_name[name]}' is the label of {len(files)} images ('{files[0]}'), and others of {channels}; "
                    "a case has one image, or each channel as CASE_0000, CASE_0001."
                )
            yield _case(files, existing_file(by_name[name]))
    for name in sorted(by_name.keys() - cases.keys()):
        with faults.caught():
            raise InputError(f"'{by_name[name]}' has no image '{name}' in '{images}'; restore it or remove the label.")


# LiTS


def is_lits(root: Path) -> bool:
    """Whether LiTS's volumes are in the folder, in any depth: Kaggle and some unzippers make folders of parts."""
    return next(root.rglob("volume-*.nii*"), None) is not None


def read_lits(root: Path, output: Path | None, faults: Faults) -> Source:
    """``volume-N.nii`` with ``segmentation-N.nii``, in any sub-folder."""
    cases = []
    for image in sorted(_files(root, "volume-*.nii*"), key=lambda path: (len(path.name), path.name)):
        number = image.name.removeprefix("volume-")
        labels = _files(root, f"segmentation-{number.split('.')[0]}.nii*")
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
            cases.append({"image": str(existing_file(image)), "label": str(existing_file(labels[0]))})
    return Source(root.name, {0: "background", 1: "liver", 2: "tumor"}, {0: "CT"}, cases)


def _files(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.rglob(pattern) if not path.is_dir())


# The 2018 left-atrium set


def _atria(folder: Path) -> list[Path]:
    # A patient's folder lies in the set's folder, or in "Training Set" or "Testing Set" there; no deeper search, or
    # every folder around the set would be taken for it.
    patterns = [f"{place}/lgemri{suffix}" for place in ("*", "*[sS]et/*") for suffix in ATRIUM_SUFFIXES]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def is_left_atrium(root: Path) -> bool:
    """Whether patients of this layout are in the folder."""
    return bool(_atria(root))


def read_left_atrium(root: Path, output: Path | None, faults: Faults) -> Source:
    """A folder for each patient with ``lgemri.nrrd`` and ``laendo.nrrd``; the challenge's test part may have no labels.

    Raises:
        InputError: when no patient has a label.
    """
    cases = []
    for image in _atria(root):
        labels = [path for suffix in ATRIUM_SUFFIXES if (path := image.with_name(f"laendo{suffix}")).is_file()]
        if labels:
            files = {"image": str(existing_file(image)), "label": str(existing_file(labels[0]))}
            cases.append({**files, "subject": image.parent.name})
    if not cases:
        raise InputError(f"'{root}' has lgemri files and no laendo file next to any of them; add the labels.")
    # The challenge's labels are 0 and 255; copies with 0 and 1 exist.
    classes = {0: "background", 1: "left atrium", 255: "left atrium"}
    return Source(root.name, classes, {0: "MRI"}, cases, "left atrium", {255: 1})
