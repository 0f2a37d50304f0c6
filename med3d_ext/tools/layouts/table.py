"""One table of the layouts of labelled cases, for every bundle's preparation, `check` and `new-bundle`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from med3d_ext.data.datalists import Source, existing_file
from med3d_ext.data.fingerprint import read_header
from med3d_ext.data.prepared_files import DATALIST, read_prepared
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.tools.layouts import lung, nodules, organs
from med3d_ext.transforms.load import ALL


@dataclass(frozen=True)
class Layout:
    """A way to lay out labelled cases in a folder."""

    name: str  # what messages call it
    tasks: tuple[str, ...]  # what it serves: "organ", "lung" or "nodules"
    mark: str  # what it is known by, in words
    # Its cases, from the folder, the folder of the preparation (None if nothing may be written) and what collects the
    # faulty cases, which are left out of the result.
    read: Callable[[Path, Path | None, Faults], Source]
    matches: Callable[[Path], object] | None = None  # whether a folder has it; None: it holds the file ``mark``

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has it."""
        return bool((folder / self.mark).is_file() if self.matches is None else self.matches(folder))


def read_again(root: Path, output: Path | None, faults: Faults) -> Source:
    """What ``prepare`` has written for lungs or nodules, for another split, other classes or another cube."""
    found = read_prepared(root)
    name, domain = next(iter(found.domains.items()))
    cases = []
    for case in found.cases[name]:
        if isinstance(case["label"], str) and "label_names" not in domain:
            raise InputError(f"'{root}' was not prepared for the lung bundle; give the source folder.")
        kept = {key: case[key] for key in KEPT if key in case}
        with faults.caught():
            for key in ("image", "label", "mask"):
                if isinstance(case.get(key), str):
                    kept[key] = str(existing_file(Path(case[key]), root / DATALIST))
            cases.append(kept)
    is_lung = "label_names" in domain
    names = domain["label_names" if is_lung else "classes"]
    classes = {int(value): str(title) for value, title in names.items()}
    return Source(name if is_lung else root.name, classes, {0: "image" if is_lung else "CT"}, cases)


KEPT = ("label", "malignancy", "modality", "subject", "stratum", "given", "fold")
ORGANS, LUNG, NODULES = ("organ", "lung"), ("lung",), ("nodules",)
LITS, LEFT_ATRIUM = "LiTS", "2018 left atrium"

# The first that matches is taken.
LAYOUTS = (
    Layout("nodules.csv", NODULES, nodules.TABLE, nodules.read_rows),
    Layout("classes", NODULES, organs.LIST, nodules.read_entries),
    Layout("prepared nodules", NODULES, DATALIST, read_again),
    Layout("nnU-Net", ORGANS, organs.LIST, organs.read_nnunet, organs.is_nnunet),
    Layout("Decathlon", ORGANS, organs.LIST, organs.read_decathlon),
    Layout("prepared lung", LUNG, DATALIST, read_again),
    Layout(
        "TotalSegmentator", LUNG, "TotalSegmentator's folders", lung.read_totalsegmentator, lung.is_totalsegmentator
    ),
    Layout("VISCERAL", LUNG, "VISCERAL's volumes", lung.read_visceral, lung.is_visceral),
    Layout(LEFT_ATRIUM, ORGANS, "lgemri.nrrd with laendo.nrrd", organs.read_left_atrium, organs.atria),
    Layout(
        LITS,
        ORGANS,
        "volume-N.nii[.gz] with segmentation-N",
        organs.read_lits,
        lambda root: next(root.rglob("volume-*.nii*"), None),
    ),
    Layout("images and labels", ORGANS, "images/ with labels/", organs.read_pairs, organs.pair_of),
)


def layout_of(folder: Path, task: str | None = None) -> Layout | None:
    """The layout of a folder of labelled cases, of those that serve a task; None if it has none of them."""
    return next((each for each in LAYOUTS if (task is None or task in each.tasks) and each.is_in(folder)), None)


def read_source(
    folder: str | os.PathLike,
    task: str = "organ",
    output: str | os.PathLike | None = None,
    faults: Faults | None = None,
) -> Source:
    """The labelled cases of a folder in any layout of a task.

    Args:
        folder: the source folder.
        task: "organ", "lung" or "nodules".
        output: folder of the preparation, for label maps that are merged from masks.
        faults: collects the cases at fault. Defaults to None, which refuses them.
    """
    root = Path(folder).expanduser()
    marks = list(dict.fromkeys(each.mark for each in LAYOUTS if task in each.tasks))
    if not root.is_dir():
        raise InputError(f"dataset_dir '{folder}' is not a folder; give the folder that holds {' or '.join(marks)}.")
    root = root.resolve()
    layout = layout_of(root, task)
    if layout is None:
        content = "is empty" if not any(root.iterdir()) else f"holds neither {' nor '.join(marks)}"
        raise InputError(f"dataset_dir '{folder}' {content}; give a folder that does, see docs/data.md.")
    found = faults or Faults()
    before = len(found.sentences)
    source = layout.read(root, None if output is None else Path(output), found)
    own = found.sentences[before:]
    if own and (faults is None or not source.cases):
        raise FaultyCases(own, len(own) + len(source.cases))
    return replace(source, layout=layout.name)


def one_channel(
    source: Source, chosen: str | int | None = None, usual: str | int | None = None, several: bool = False
) -> Source:
    """One channel of each case, as one file under ``image`` and its ``channel``: a file, or its number in 4D files.

    ``chosen`` is a name or a number, as ``--channel`` gives it. If there is none, it is ``usual``; a set of one channel
    need not have it by this name. If ``several`` may be, `all` takes all: ``channel`` is `all` then, and cases of a
    file for each keep their list.
    """
    first, channels = channels_of(source)
    named = {number: name for number, name in source.modality.items() if number < channels}
    names = {name.lower(): number for number, name in sorted(named.items(), reverse=True)}
    wanted = usual if chosen is None else chosen
    if several and str(chosen).lower() == ALL and ALL not in names:
        return source if channels == 1 else replace(source, channel=ALL, chosen=(ALL, ALL))
    number = names.get(str(wanted).lower(), int(str(wanted)) if str(wanted).isdigit() else channels)
    if number >= channels and channels == 1 and chosen is None and not isinstance(usual, int):
        number = 0
    if number >= channels:
        known = ", ".join(f"{number}: {named.get(number, 'no name')}" for number in range(channels))
        fault = "none is chosen" if wanted is None else f"none is '{wanted}'"
        raise InputError(
            f"'{first}' has {'one channel' if channels == 1 else f'{channels} channels'} ({known}) and {fault}; name "
            f"the channel by --channel, or in domains.json, see docs/data.md."
        )
    if channels == 1:
        return source
    taken = (number, named.get(number, str(number)))
    if not any(isinstance(case["image"], list) for case in source.cases):
        return replace(source, channel=number, chosen=taken)
    files = {len(case["image"]) if isinstance(case["image"], list) else 1 for case in source.cases}
    if len(files) > 1:
        raise InputError(f"the cases of '{source.name}' have {sorted(files)} channels; all must have the same.")
    cases = [{**case, "image": case["image"][number]} for case in source.cases]
    return replace(source, cases=cases, modality={0: taken[1]}, channel=0, chosen=taken)


def channels_of(source: Source) -> tuple[str, int]:
    """The first image that can be read, and its channels: its files, or those in its file."""
    faults = Faults()
    for case in source.cases:
        with faults.caught():
            if isinstance(case["image"], list):
                return case["image"][0], len(case["image"])
            return case["image"], read_header(case["image"])["channels"]
    raise FaultyCases(faults.sentences, len(source.cases))
