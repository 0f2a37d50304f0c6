"""The two files that ``prepare`` writes: the facts of each domain, and the list of cases with their split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import Source
from med3d_ext.data.fingerprint import label_map, read_header, repair_spacing, scan_cases
from med3d_ext.data.identity import FILES, file_digest, stated_files
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.files import file_stamp, read_json, write_json
from med3d_ext.transforms.load import load_volume

logger = logging.getLogger("med3d_ext.prepare")
DATALIST, FINGERPRINT = "datalist.json", "fingerprint.json"
LISTS = ("dataset.json", "*/dataset.json", "domains.json", "nodules.csv")  # what a source says of its cases


def fingerprint_domain(
    source: Source,
    known: list[dict[str, Any]],
    channel: int | None = None,
    foreground: bool = False,
    faults: Faults | None = None,
) -> dict[str, Any]:
    """Both passes over one source: header facts, then hashes, intensities and label values of every case.

    Args:
        source: the source folder's cases.
        known: cases of an earlier fingerprint, which are read again only where files changed.
        channel: channel of 4D images; None wants 3D images.
        foreground: refuse labels without foreground.
        faults: collects the faulty cases, which are left out of the result; the caller settles them. Defaults to None,
            which refuses them all here.

    Raises:
        InputError: when a file is damaged, channels differ, or a label value is not a class; every such case is named.
    """
    found = faults or Faults()
    cases: list[dict[str, Any]] = []
    for case in source.cases:
        with found.caught():
            header = read_header(case["image"])
            _check_channels(case, header, cases[0] if cases else None, channel)
            cases.append({**case, **header})
    if cases:
        repair_spacing(cases)  # reading the image warns of it
    cases = scan_cases(cases, known, channel, foreground, logger.info, found)
    good = []
    for case in cases:
        with found.caught():
            _check_label_values(source, case)
            good.append(case)
    if found.sentences and (faults is None or not good):
        raise FaultyCases(found.sentences, len(source.cases))
    cases = without_twins(good)
    return {"classes": {str(value): name for value, name in source.classes.items()}, "cases": cases}


def without_twins(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case once, with a warning for those that are listed again, under the same name or another one.

    Raises:
        InputError: an image is listed with two labels, or on two sides of a given split.
    """
    kept: dict[str, dict[str, Any]] = {}
    for case in cases:
        first = kept.setdefault(case["sha256"], case)
        if first is case:
            continue
        names = f"'{case['image']}'" if case["image"] == first["image"] else f"'{first['image']}' and '{case['image']}'"
        if not _same_label(first, case):
            labels = ", ".join(f"'{each.get('mask', each['label'])}'" for each in (first, case))
            raise InputError(f"{names}: one image with two different labels ({labels}); remove the wrong one.")
        if first.get("given") != case.get("given"):
            raise InputError(
                f"{names}: one image, listed as {first['given']} and as {case['given']}; remove one entry."
            )
        logger.warning(f"{names}: one case, listed twice; it counts once")
    return list(kept.values())


def _same_label(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if not isinstance(one["label"], str):
        return bool(one["label"] == other["label"])
    if one["label_sha256"] == other["label_sha256"]:
        return True
    volumes = [load_volume(case["label"]).as_tensor() for case in (one, other)]  # the same, perhaps packed anew
    return volumes[0].shape == volumes[1].shape and bool((volumes[0] == volumes[1]).all())


def absent_classes(domain: Mapping[str, Any]) -> Iterator[str]:
    """For each class that no training case holds, a sentence that says so and where it is.

    Args:
        domain: the facts of a prepared domain.
    """
    raw = domain.get("label_map") or {}
    holders: dict[str, set[str]] = {}
    for case in domain["cases"]:
        values = case.get("labels", {}) if isinstance(case["label"], str) else [case["label"]]
        for value in values:
            holders.setdefault(str(raw.get(str(value), value)), set()).add(case["split"])
    for value, name in domain["classes"].items():
        splits = holders.get(str(value), set())
        if "training" not in splits:
            others = (
                f"{' and '.join(split for split in SPLITS if split in splits)} cases do" if splits else "no case does"
            )
            yield f"no training case holds the class {value} ({name}), {others}: it cannot be learned"


def _check_channels(
    case: dict[str, Any], header: dict[str, Any], first: dict[str, Any] | None, channel: int | None
) -> None:
    if channel is None and header["channels"] > 1:
        raise InputError(f"'{case['image']}' is a 4D file; this task takes 3D volumes: split it.")
    if first is not None and header["channels"] != first["channels"]:
        raise InputError(
            f"'{case['image']}' has {header['channels']} channels, '{first['image']}' has "
            f"{first['channels']}; a domain's images must have the same channels: repair or remove one."
        )


def _check_label_values(source: Source, case: dict[str, Any]) -> None:
    if not isinstance(case["label"], str):
        return
    unknown = sorted(set(map(int, case["labels"])) - set(source.classes))
    if unknown:
        raise InputError(
            f"label '{case['label']}' holds the value {unknown[0]}, {source.name} has the classes "
            f"{sorted(source.classes)}; correct one."
        )


def known_cases(output: str | os.PathLike, channel: int | None = None) -> list[dict[str, Any]]:
    """Cases of the fingerprint that ``output`` holds, of the domains that took the same channel."""
    path = Path(output) / FINGERPRINT
    domains = read_json(path).get("domains", {}).values() if path.is_file() else []
    return [case for domain in domains if domain.get("channel") == channel for case in domain["cases"]]


def change_paths(case: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The files of a case with ``change`` applied to each path, and its label where that is a class."""
    given = {key: case[key] for key in FILES if case.get(key) is not None}
    return {key: change(value) if isinstance(value, str) else value for key, value in given.items()}


def write_prepared(
    domains: Mapping[str, dict[str, Any]], src: Path, output: Path, seed: int, remarks: str = ""
) -> None:
    """Write ``fingerprint.json`` and, in the Decathlon's format, ``datalist.json``; each atomically.

    What lies in ``output`` is listed relative to it, so that the folder can be moved.

    Args:
        domains: facts by domain, the cases with their split among them.
        src: the source folder.
        output: the folder to write into.
        seed: seed of the split.
        remarks: what else the summary line tells, such as the number of skipped cases.
    """
    inside = output.resolve() == src.resolve()
    lists: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for name, domain in domains.items():
        stated = ["modality"] if all("modality" in case for case in domain["cases"]) else []  # a batch needs equal keys
        for case in domain["cases"]:
            files = change_paths(case, lambda path: _portable(path, output.resolve(), inside))
            channel = {"channel": domain["channel"]} if "channel" in domain else {}
            facts = {key: case[key] for key in (*stated, "sha256")}
            facts["label_sha256"] = case["label_sha256"] or ""  # None would make no batch
            lists[case["split"]].append({**files, "domain": name, **channel, **facts})
    around = {
        folder for domain in domains.values() for case in domain["cases"] for folder in Path(case["image"]).parents
    }
    listed = [path for pattern in LISTS for path in sorted(src.resolve().glob(pattern)) if path.is_file()]
    read = [str(path) for path in listed if path.parent in around or path.parent == src.resolve()]
    read += [part for domain in domains.values() for case in domain["cases"] for part in case.pop("parts", [])]
    sources = {_portable(path, output.resolve(), inside): file_digest(path) for path in read}
    for name, domain in domains.items():
        for sentence in absent_classes(domain):
            logger.warning(f"{name}: {sentence}")
    tables = {name: _label_table(domain) for name, domain in domains.items()}
    labels = next(iter(tables.values())) if len(tables) == 1 else tables
    write_json(output / FINGERPRINT, {"seed": seed, "domains": dict(domains)})
    write_json(output / DATALIST, {"name": src.resolve().name, "labels": labels, "sources": sources, **lists})
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in lists.items()) + remarks
    logger.info(f"prepared {src}: {counts}; datalist and fingerprint are in {output}")


def left_out(faults: Faults) -> str:
    """What the summary line tells of faulty cases."""
    return f"; {len(faults.sentences)} faulty left out" if faults.sentences else ""


def _label_table(domain: Mapping[str, Any]) -> dict[str, str]:
    """Value in the label files to name of its class, as a Decathlon list states them: merged values share a name."""
    label_map = domain.get("label_map", {value: value for value in domain["classes"]})
    return {value: domain["classes"][str(target)] for value, target in label_map.items()}


def _portable(path: str, root: Path, inside: bool) -> str:
    return f"./{os.path.relpath(path, root)}" if inside or Path(path).is_relative_to(root) else path


def changed_files(folder: Path, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files whose content is not what it was when a folder was prepared: those of some items, lists of cases, masks.

    Files with the size, times and inode of then are not read. One that is gone does not count: a prepared folder may be
    moved without its source, and images and labels are refused where they are read.

    Args:
        folder: the prepared folder.
        items: its items, with absolute paths.
    """
    stamps: dict[str, list[int]] = {}
    for domain in read_json(folder / FINGERPRINT).get("domains", {}).values():
        for case in domain.get("cases", []):
            files = [path for path in (case["image"], label_map(case)) if path is not None]
            stamps |= zip(files, case.get("stamp", [])[-len(files) :])
    sources = {str(folder / path): digest for path, digest in read_json(folder / DATALIST).get("sources", {}).items()}
    stated = {path: digest for item in items for _, path, digest in stated_files(item) if digest is not None}
    return [
        path
        for path, digest in (stated | sources).items()
        if os.path.isfile(path) and stamps.get(path) != file_stamp(path) and file_digest(path) != digest
    ]


def prepared_with(folder: Path, options: Mapping[str, Any]) -> bool:
    """Whether a prepared folder was made with these options; None asks for nothing, and old folders state none."""
    wanted = {key: value for key, value in options.items() if value is not None}
    if "folds" not in wanted and wanted.get("fold") == 0:
        del wanted["fold"]  # the default, which means nothing alone
    stated = [domain.get("options", {}) for domain in read_json(folder / FINGERPRINT).get("domains", {}).values()]
    return all(facts.get(key, value) == value for facts in stated for key, value in wanted.items())
