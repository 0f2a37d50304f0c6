"""The 3DSeg-8 table: what the paper's eight domains are among the Decathlon's tasks, a user's own domains, classes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.io.facts import facts_path, read_facts

STRIDE = 8  # a grid is a multiple of the encoder's output stride


@dataclass(frozen=True)
class Domain:
    """One domain's settings."""

    organ: str  # the paper's name for it; a user's domain has its own name here
    folder: str  # the Decathlon's
    modality: str | None  # "CT" or "MR"
    spatial_size: Sequence[int] = (96, 96, 96)  # the grid that samples are resampled to, in RAS order
    channel: str | int | None = None  # name or number in 4D files; None wants 3D files
    intensity_range: Sequence[float] | None = None  # lowest and highest to keep; None keeps all
    merge: Mapping[int, int] = field(default_factory=dict)  # label value to the one that it counts as
    titles: tuple[str, ...] = ()  # further names that folders and dataset.json go by
    num_classes: int = 2  # of the Decathlon's labels, with background and after merging


# The range keeps what every CT holds: some sets are stored within it, others from -1024 HU on.
CT_RANGE = (-125.0, 275.0)
CT: dict[str, Any] = {"modality": "CT", "spatial_size": (128, 128, 96), "intensity_range": CT_RANGE}
# In the order of the paper's tables 1 and 2. Of its targets ("organ", "organ/tumour", "tissue/tumour") only the liver
# is one class where the Decathlon has two.
DOMAINS = (
    Domain("brain", "Task01_BrainTumour", "MR", (112, 112, 80), "FLAIR", titles=("brats", "braintumor"), num_classes=4),
    Domain("hippocampus", "Task04_Hippocampus", "MR", (96, 144, 96), titles=("hippo",), num_classes=3),
    Domain("prostate", "Task05_Prostate", "MR", (128, 128, 48), channel="T2", num_classes=3),
    Domain("liver", "Task03_Liver", **CT, merge={2: 1}, titles=("lits",)),
    Domain("heart", "Task02_Heart", "MR", (128, 96, 64), titles=("leftatrium", "leftatrial")),
    Domain("pancreas", "Task07_Pancreas", **CT, num_classes=3),
    Domain("vessel", "Task08_HepaticVessel", **CT, num_classes=3),
    Domain("spleen", "Task09_Spleen", **CT),
)
OTHER_TASKS = ("Task06", "Task10")  # lung and colon of the Decathlon: not in 3DSeg-8


def task_of(folder: str) -> str | None:
    """``Task03`` of a folder's name that begins so."""
    found = re.match(r"Task\d\d(?=_|$)", folder)
    return found.group() if found else None


def recognize(folder: str, title: str = "") -> Domain | None:
    """The domain of a Decathlon folder by its task number, else by its name, else by the title in ``dataset.json``."""
    for domain in DOMAINS:
        if task_of(folder) == task_of(domain.folder):
            return domain
    for text in (re.sub(r"^Dataset\d+_", "", folder), title):  # nnU-Net's Dataset003_Liver
        letters = re.sub(r"[^a-z]", "", text.lower())
        for domain in DOMAINS:
            if letters in (domain.organ, domain.folder.partition("_")[2].lower(), *domain.titles):
                return domain
    return None


def read_lines(path: str | Path) -> dict[str, dict[str, Any]]:
    """A user's domains: a line of JSON each, name to ``folder`` and the fields of :class:`Domain` that differ."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twins := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"'{path}' states '{twins[0]}' twice; two domains of one name are not possible: rename one."
            )
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the path.") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not valid JSON ({error}); repair it.") from error
    allowed = {each.name for each in fields(Domain)} - {"organ", "titles", "num_classes"}
    for name, line in content.items() if isinstance(content, dict) else [(path, None)]:
        if not isinstance(line, dict):
            raise InputError(f'\'{path}\' must map names to settings as {{"Kidneys": {{"folder": "kidneys"}}}}.')
        for key in set(line) - allowed:
            raise InputError(f"'{path}' has the unknown key '{key}' under '{name}'; use {', '.join(sorted(allowed))}.")
    return content


def is_ct(channel: str) -> bool:
    """Whether a channel's name says that it is a CT."""
    return "ct" in re.split(r"[^a-z]+", channel.lower())


def settings_of(name: str, folder: str, title: str, modality: Mapping[int, str], line: Mapping[str, Any]) -> Domain:
    """The settings of one folder: its domain's from the table if it is one, changed by the user's ``line``.

    ``title`` and ``modality``, the channels' names, are what its ``dataset.json`` states.
    """
    has_ct = any(map(is_ct, modality.values()))
    own = {"modality": "CT", "intensity_range": CT_RANGE} if has_ct else {"modality": "MR"}
    base = recognize(folder, title) or Domain(organ=name, folder=folder, **own)  # type: ignore[arg-type]
    changes = {key: value for key, value in line.items() if key != "folder"}
    if "merge" in changes:
        try:
            changes["merge"] = {int(value): int(target) for value, target in changes["merge"].items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"merge of domain '{name}' must map label values, as {{\"2\": 1}}; correct it.") from error
    domain = replace(base, organ=name if line.get("folder") else base.organ, **changes)
    size, limits = domain.spatial_size, domain.intensity_range
    if len(size) != 3 or any(not isinstance(extent, int) or extent < STRIDE or extent % STRIDE for extent in size):
        raise InputError(f"spatial_size of domain '{name}' must be three multiples of {STRIDE}, got {list(size)}.")
    if limits is not None and (len(limits) != 2 or limits[0] >= limits[1]):
        raise InputError(f"intensity_range of domain '{name}' must be [lowest, highest] or null, got {limits}.")
    return domain


def choose_domains(domains: Mapping[str, Mapping[str, Any]], wanted: int | str | Sequence[str] | None) -> list[str]:
    """Names of the chosen domains, in the order of ``domains``.

    Args:
        domains: name to facts; the paper's name, ``organ``, and the task number stand for the name as well.
        wanted: names, as a list or joined by commas, or how many: 4 takes the first four in the order of the paper's
            table 2 (brain, hippocampus, prostate, liver, heart, pancreas, vessel, spleen). None takes all.
    """
    if wanted is None or wanted == "":
        return list(domains)
    if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdigit()):
        if not 1 <= int(wanted) <= len(domains):
            raise InputError(f"domains must be 1 to {len(domains)}, as many as the data set has, got {wanted}.")
        return list(domains)[: int(wanted)]
    chosen = set()
    for name in [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else wanted:
        hits = {key for key, facts in domains.items() if name in (key, facts.get("organ"), task_of(key))}
        if not hits:
            raise InputError(f"domains must name some of {', '.join(domains)}, got '{name}'.")
        chosen |= hits
    return [name for name in domains if name in chosen]


# Classes


def merge_classes(classes: Mapping[int, str], merge: Mapping[int, int]) -> tuple[dict[str, str], dict[str, int]]:
    """Classes after merging, numbered from 0 on, and the map from every label value to its class."""
    kept = [value for value in sorted(classes) if merge.get(value, value) == value]
    numbers = {value: number for number, value in enumerate(kept)}
    targets = {value: merge.get(value, value) for value in sorted(classes)}
    for value, target in targets.items():
        if target not in numbers or kept[0] != 0:
            raise InputError(f"label {value} cannot become {target}: the classes must hold it and 0, the background.")
    label_map = {str(value): numbers[target] for value, target in targets.items()}
    return {str(numbers[value]): classes[value] for value in kept}, label_map


def label_map_of(domain: Mapping[str, Any], num_classes: int | None = None) -> dict[str, int]:
    """Value in the label files to class of the network, of a domain's facts.

    Classes from ``num_classes`` on count as the last one: of LiTS's two targets the tumor is liver, too.
    """
    ranks = {str(value): rank for rank, value in enumerate(sorted(map(int, domain["classes"])))}
    last = (num_classes or len(ranks)) - 1
    return {value: min(target, last) for value, target in domain.get("label_map", ranks).items()}


def label_values(domain: Mapping[str, Any], num_classes: int | None = None) -> dict[str, list[int]]:
    """Class of the network to its values in the label files, the lowest first, which predictions carry.

    Args:
        domain: the facts next to the weights.
        num_classes: see :func:`label_map_of`.
    """
    values: dict[str, list[int]] = {"0": [0]}
    for value, target in sorted(label_map_of(domain, num_classes).items(), key=lambda pair: int(pair[0])):
        if int(value) > 0:
            values.setdefault(str(target), []).append(int(value))
    return dict(sorted(values.items(), key=lambda pair: int(pair[0])))


def branch_classes(bundle_root: str, ckpt_dir: str | None = None) -> dict[str, int]:
    """Domain to number of classes of the weights that inference takes; the Decathlon's where there are no weights yet.

    The network can then be built, checked and exported before anything was trained.

    Args:
        bundle_root: the bundle's folder.
        ckpt_dir: where its training writes. Defaults to None: ``models`` in the bundle.
    """
    return _classes_of_weights(bundle_root, ckpt_dir) or {each.folder: each.num_classes for each in DOMAINS}


def class_count(bundle_root: str, ckpt_dir: str | None = None, default: int = 2) -> int:
    """Number of classes of the weights that the inference of a one-domain bundle takes.

    Args:
        bundle_root: the bundle's folder.
        ckpt_dir: where its training writes. Defaults to None: ``models`` in the bundle.
        default: what a network without weights is built with. Defaults to 2.
    """
    return next(iter(_classes_of_weights(bundle_root, ckpt_dir).values()), default)


def _classes_of_weights(bundle_root: str, ckpt_dir: str | None) -> dict[str, int]:
    for folder in (Path(ckpt_dir or Path(bundle_root) / "models"), Path(bundle_root) / "weights"):
        if (folder / "model.pt").is_file() and facts_path(folder) is not None:
            return {name: len(domain["classes"]) for name, domain in read_facts(folder)["domains"].items()}
    return {}
