"""``prepare 3dseg8``: the paper's eight domains, any of them, and a user's own, into one datalist."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.apps import DecathlonDataset, download_and_extract

from med3d_ext.data.datalists import Source
from med3d_ext.data.domains import (
    DOMAINS,
    OTHER_TASKS,
    Domain,
    choose_domains,
    is_ct,
    merge_classes,
    read_lines,
    recognize,
    settings_of,
    task_of,
)
from med3d_ext.data.prepared_files import prepare_domains
from med3d_ext.errors import Faults, InputError
from med3d_ext.io.files import hold, lock_elsewhere, stem
from med3d_ext.tools.channels import NUMBERED, join_channels
from med3d_ext.tools.layouts.table import LEFT_ATRIUM, LITS, layout_of, one_channel, read_source
from med3d_ext.transforms.load import ALL, load_volume

logger = logging.getLogger("med3d_ext.prepare")
LINES = "domains.json"
AIR = -100  # HU; sets that were cut to a window hold at least what is fat


@dataclass(frozen=True)
class Found:
    """A domain's folder with its cases and settings."""

    folder: Path
    source: Source
    settings: Domain


def prepare_3dseg8(
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int = 0,
    domains: int | str | Sequence[str] | None = None,
    domains_file: str | os.PathLike | None = None,
    download: bool = False,
    skip_bad: bool = False,
    channel: str | int | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> Path:
    """Prepare the domains of a folder for pretraining: each is a sub-folder, in any layout of an organ.

    Folders of the Decathlon are recognized by task number, name or title (lung and colon are not in 3DSeg-8 and left
    out), the 2018 left-atrium set by its files. Every other folder in a layout of
    :mod:`med3d_ext.tools.layouts.table` is a domain of its own. A folder that is itself one domain may be given, too.
    """
    root = Path(src).expanduser()
    if download:
        table = {domain.folder: {"organ": domain.organ} for domain in DOMAINS}
        download_tasks(root, choose_domains(table, domains))
    faults = Faults(skip_bad)
    found = find_domains(root, domains_file, faults, domains, channel)
    found = {name: replace(each, source=_joined(each, Path(output), faults)) for name, each in found.items()}
    merged = {}
    for name, each in found.items():
        try:
            merged[name] = merge_classes(each.source.classes, each.settings.merge)
        except InputError as error:
            raise InputError(f"'{each.folder}': {error}") from error

    def facts(name: str, domain: dict[str, Any]) -> dict[str, Any]:
        settings, (classes, label_map) = found[name].settings, merged[name]
        return {
            "organ": settings.organ,
            "modality": settings.modality,
            "channel": found[name].source.channel or 0,
            "classes": classes,
            "label_map": label_map,
            "spatial_size": list(settings.spatial_size),
            "intensity_range": None if settings.intensity_range is None else list(settings.intensity_range),
            **({"channels": domain["cases"][0]["channels"]} if found[name].source.channel == ALL else {}),
            **({} if folds is None else {"options": {"folds": folds, "fold": fold}}),
        }

    sources = {name: each.source for name, each in found.items()}
    more: dict[str, Any] = {"foreground": False, "default_channel": 0, "folds": folds, "fold": fold}
    return prepare_domains(sources, facts, root, output, seed, faults, **more)


def download_tasks(folder: str | os.PathLike, tasks: Iterable[str]) -> None:
    """Bring tasks of the Decathlon, such as ``Task04_Hippocampus``, into a folder; those that are there stay.

    Each archive is checked by MONAI's MD5 sum and unpacked next to its place, so that an interrupted call leaves no
    half-filled task; a complete archive is not fetched again.
    """
    root = Path(folder)
    for task in tasks:
        if (root / task).exists():
            continue
        with hold(lock_elsewhere(root), place=root):
            if (root / task).exists():
                continue  # another process has fetched it meanwhile
            scratch = root / ".download"
            scratch.mkdir(parents=True, exist_ok=True)
            url, md5 = DecathlonDataset.resource[task], DecathlonDataset.md5[task]
            logger.info(f"fetching {task} from {url}")
            shutil.rmtree(scratch / task, ignore_errors=True)
            try:
                archive = scratch / f"{task}.tar"
                download_and_extract(url, archive, scratch, hash_val=md5, hash_type="md5", progress=False)
            except Exception as error:  # the downloader raises OSError, RuntimeError and its own
                raise InputError(
                    f"{task} cannot be fetched from {url} ({error}); try again, or put it there."
                ) from error
            os.replace(scratch / task, root / task)
            shutil.rmtree(scratch, ignore_errors=True)


def find_domains(
    root: Path,
    domains_file: str | os.PathLike | None = None,
    faults: Faults | None = None,
    domains: int | str | Sequence[str] | None = None,
    channel: str | int | None = None,
) -> dict[str, Found]:
    """The domains of a folder by name, in the order of the paper's table 2, a user's own after them.

    Args:
        root: the folder.
        domains_file: JSON with a user's domains and settings, see :func:`med3d_ext.data.domains.read_lines`. Defaults
            to ``domains.json`` in the folder, if there is one.
        faults: collects the cases whose files are missing. Defaults to None, which refuses them.
        domains: the domains to take, see :func:`med3d_ext.data.domains.choose_domains`. Defaults to None: all.
        channel: name or number of the channel of a single domain that has several, or `all`; else that of its settings.
    """
    if not root.is_dir():
        raise InputError(f"'{root}' is not a folder; give the folder that holds the domains' folders.")
    file = Path(domains_file) if domains_file else root / LINES
    lines = read_lines(file) if domains_file or file.is_file() else {}
    found: dict[str, Found] = {}
    for name, folder in _folders(root, lines).items():
        source, line = read_source(folder, faults=faults), lines.get(name, {})
        modality = {0: line["modality"]} if "modality" in line else source.modality
        if not modality and recognize(folder.name, source.title or folder.name) is None:
            modality = {0: _guessed_modality(source)}
        line = {**({"merge": source.merge} if source.merge else {}), **line}
        if str(channel).lower() == ALL and len({*map(is_ct, modality.values())}) > 1:
            modality = {0: "MR"}  # a window of HU would be wrong for some of the channels
        settings = settings_of(name, folder.name, source.title or folder.name, modality, line)
        found[name] = Found(folder, replace(source, name=name), settings)
    if not found:
        raise InputError(f"'{root}' holds no domain; give the folder that holds Task01_BrainTumour and the others.")
    kept: dict[str, str] = {}  # the 100 cases of 2018 alone may take the place of the Decathlon's 20 hearts
    for name in sorted(found, key=lambda name: found[name].source.layout != LEFT_ATRIUM):
        organ, folder = found[name].settings.organ, found[name].folder
        if (other := found[kept.setdefault(organ, name)]) is found[name]:
            continue
        if other.source.layout != LEFT_ATRIUM:
            raise InputError(
                f"'{folder}' and '{other.folder}' are both the domain '{organ}'; remove one, or give it a name of its "
                f'own by a line in {LINES}: {{"NAME": {{"folder": "{folder.name}"}}}}.'
            )
        logger.info(f"'{other.folder}' takes the place of '{folder}'")
    found = {name: found[name] for name in kept.values()}
    order = [domain.organ for domain in DOMAINS]
    place = {name: order.index(each.settings.organ) for name, each in found.items() if each.settings.organ in order}
    found = {name: found[name] for name in sorted(found, key=lambda name: (place.get(name, len(order)), name))}
    chosen = choose_domains({name: {"organ": each.settings.organ} for name, each in found.items()}, domains)
    if channel is not None and len(chosen) > 1:
        raise InputError(
            f"channel '{channel}' is for one domain, and '{root}' has {', '.join(chosen)}; name the channel of each in "
            f"{LINES}."
        )
    taken = {name: (found[name].source, channel, found[name].settings.channel) for name in chosen}
    return {name: replace(found[name], source=one_channel(*each, several=True)) for name, each in taken.items()}


def _joined(found: Found, output: Path, faults: Faults) -> Source:
    """A domain's source, the channels of cases that have a file for each joined to one in ``images/`` of ``output``."""
    source = found.source
    if source.channel != ALL or not any(isinstance(case["image"], list) for case in source.cases):
        return source
    folder = output.resolve() / "images"
    if folder.is_relative_to(found.folder.resolve()):
        raise InputError(f"output must be a folder outside of '{found.folder}' for the joined images, got '{output}'.")
    cases, taken = [], dict[str, str]()
    for case in source.cases:
        with faults.caught():
            files = case["image"] if isinstance(case["image"], list) else [case["image"]]
            name = NUMBERED.sub(r"\1", stem(files[0]))
            if (other := taken.setdefault(name, files[0])) != files[0]:
                raise InputError(f"'{other}' and '{files[0]}' are two cases of the name '{name}'; rename one.")
            join_channels(files, folder / f"{name}.nii.gz")
            cases.append({**case, "image": str(folder / f"{name}.nii.gz"), "parts": files})
    return replace(source, cases=cases)


def _folders(root: Path, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """The folder of each domain: those that a line of JSON names, and those that look like domains."""
    named = {name: root / line.get("folder", name) for name, line in lines.items()}
    for name, folder in named.items():
        if not folder.is_dir():
            raise InputError(f"'{folder}' of domain '{name}' is not a folder; correct its line in the JSON file.")
    taken = {folder.resolve() for folder in named.values()}
    places = (
        [root.resolve()] if _is_domain(root.resolve()) else sorted(path for path in root.iterdir() if path.is_dir())
    )
    folders = dict(named)
    for folder in places:
        if folder.resolve() in taken or not _is_domain(folder):
            continue
        if task_of(folder.name) in OTHER_TASKS and folder != root.resolve():
            logger.info(f"'{folder}' is not in 3DSeg-8 and is left out; to include it, add a line to {LINES}")
            continue
        for name in named:
            if name.casefold() == folder.name.casefold():
                raise InputError(f"'{folder}' and '{named[name]}' are two domains of the name '{name}'; rename one.")
        folders[folder.name] = folder
    return folders


def _is_domain(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    if (task_of(folder.name) is not None and recognize(folder.name) is not None) or (folder / "imagesTr").is_dir():
        return True  # to be refused by name if it has no layout
    layout = layout_of(folder, "organ")
    # LiTS's volumes are found in any depth, and a folder of domains may hold theirs.
    return layout is not None and (layout.name != LITS or any(folder.glob("volume-*.nii*")))


def _guessed_modality(source: Source) -> str:
    """CT or MR, if nothing says it: HU are far below 0 outside of the body."""
    guess = "MR"
    for case in source.cases:
        with suppress(InputError):  # a damaged file is refused where all are read
            image = load_volume(case["image"] if isinstance(case["image"], str) else case["image"][0], 0)
            guess = "CT" if image.min() <= AIR else "MR"
            break
    logger.warning(f"'{source.name}' states no modality: {guess} by the intensities; correct it by a line in {LINES}")
    return guess
