"""The two files that ``prepare`` writes: the facts of each domain, and the cases with all that is known of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import Source
from med3d_ext.data.fingerprint import read_header, repair_spacing, scan_cases
from med3d_ext.data.identity import FILES, file_digest, stated_files
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.facts import FACTS, former_cases, read_facts, write_facts
from med3d_ext.io.files import file_stamp, read_json, write_json
from med3d_ext.transforms.load import load_volume

logger = logging.getLogger("med3d_ext.prepare")
DATALIST = "datalist.json"
IN_ENTRY = (*FILES, "sha256", "label_sha256", "split", "parts")  # of a case, what is not for the scan's table
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
        known: cases of an earlier scan, which are read again only where files changed.
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


def absent_classes(domain: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each class that no training case holds, a sentence that says so and where it is.

    Args:
        domain: the facts of a prepared domain.
        cases: its cases.
    """
    raw = domain.get("label_map") or {}
    holders: dict[str, set[str]] = {}
    for case in cases:
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


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, also one of version 0.1.

    Args:
        folder: its place.
        domains: name to facts.
        lists: ``datalist.json``.
        cases: name of a domain to its scanned cases: files with absolute paths, ``split``, hashes, and what the scan
            has found: ``shape``, ``spacing``, ``orientation``, ``intensity``, ``labels``, ``target_box``, ``stamp``.
    """

    folder: Path
    domains: dict[str, dict[str, Any]]
    lists: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_prepared(folder: Path) -> Prepared:
    """Read what :func:`write_prepared` has written.

    Raises:
        InputError: one of its two files is missing or damaged.
    """
    lists, domains = read_json(folder / DATALIST), read_facts(folder)["domains"]
    scan = lists.get("scan")
    if scan is None:
        scan = {name: {case.get("sha256"): case for case in former} for name, former in former_cases(folder).items()}
    listed: dict[tuple, dict[str, Any]] = {}
    for split in SPLITS:
        for item in lists.get(split, []):
            listed[item.get("domain"), item.get("sha256")] = {**located(item, folder), "split": split}
    cases: dict[str, list[dict[str, Any]]] = {name: [] for name in domains}
    for name in domains:
        for digest, found in scan.get(name, {}).items():
            if own := listed.get((name, digest)):
                of_label = own.get("label_sha256") or found.get("label_sha256")
                cases[name].append({**found, **own, "label_sha256": of_label})
    return Prepared(folder, domains, lists, cases)


def located(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An entry of ``datalist.json`` with absolute paths."""
    root = folder.resolve()
    return {**item, **{key: str((root / item[key]).resolve()) for key in FILES if isinstance(item.get(key), str)}}


def known_cases(output: str | os.PathLike, channel: int | None = None) -> list[dict[str, Any]]:
    """Cases of the folder that was prepared in ``output`` before, of the domains that took the same channel."""
    try:
        known = read_prepared(Path(output))
    except InputError:
        return []  # nothing was, or it is damaged: all is read anew
    same = [known.cases[name] for name, facts in known.domains.items() if facts.get("channel") == channel]
    return [case for cases in same for case in cases]


def write_prepared(
    domains: Mapping[str, dict[str, Any]], src: Path, output: Path, seed: int, remarks: str = ""
) -> None:
    """Write ``facts.json`` and, in the Decathlon's format, ``datalist.json``; each atomically.

    What lies in ``output`` is listed relative to it, so that the folder can be moved. The entries of the list are fit
    for batches; what the scan found of each case is under ``scan``, by domain and SHA-256 of the image.

    Args:
        domains: facts by domain, the cases with their split among them.
        src: the source folder.
        output: the folder to write into.
        seed: seed of the split.
        remarks: what else the summary line tells, such as the number of skipped cases.
    """
    inside = output.resolve() == src.resolve()
    lists: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    scan: dict[str, dict[str, Any]] = {name: {} for name in domains}
    for name, domain in domains.items():
        stated = ["modality"] if all("modality" in case for case in domain["cases"]) else []  # a batch needs equal keys
        for case in domain["cases"]:
            files = {key: case[key] for key in FILES if case.get(key) is not None}
            for key, value in files.items():
                if isinstance(value, str):  # the label may be a class
                    files[key] = _portable(value, output.resolve(), inside)
            channel = {"channel": domain["channel"]} if "channel" in domain else {}
            facts = {key: case[key] for key in (*stated, "sha256")}
            facts["label_sha256"] = case["label_sha256"] or ""  # None would make no batch
            lists[case["split"]].append({**files, "domain": name, **channel, **facts})
            scan[name][case["sha256"]] = {key: value for key, value in case.items() if key not in IN_ENTRY}
    around = {
        folder for domain in domains.values() for case in domain["cases"] for folder in Path(case["image"]).parents
    }
    listed = [path for pattern in LISTS for path in sorted(src.resolve().glob(pattern)) if path.is_file()]
    read = [str(path) for path in listed if path.parent in around or path.parent == src.resolve()]
    read += [part for domain in domains.values() for case in domain["cases"] for part in case.get("parts", [])]
    sources = {_portable(path, output.resolve(), inside): file_digest(path) for path in read}
    for name, domain in domains.items():
        for sentence in absent_classes(domain, domain["cases"]):
            logger.warning(f"{name}: {sentence}")
    tables = {name: _label_table(domain) for name, domain in domains.items()}
    labels = next(iter(tables.values())) if len(tables) == 1 else tables
    write_facts(output, {"seed": seed, "domains": domains})
    write_json(
        output / DATALIST,
        {"name": src.resolve().name, "labels": labels, "sources": sources, **lists, "scan": scan},
    )
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in lists.items()) + remarks
    logger.info(f"prepared {src}: {counts}; {DATALIST} and {FACTS} are in {output}")


def left_out(faults: Faults) -> str:
    """What the summary line reports about faulty cases."""
    return f"; {len(faults.sentences)} faulty left out" if faults.sentences else ""


def _label_table(domain: Mapping[str, Any]) -> dict[str, str]:
    """Value in the label files to name of its class, as a Decathlon list states them: merged values share a name."""
    label_map = domain.get("label_map", {value: value for value in domain["classes"]})
    return {value: domain["classes"][str(target)] for value, target in label_map.items()}


def _portable(path: str, root: Path, inside: bool) -> str:
    return f"./{os.path.relpath(path, root)}" if inside or Path(path).is_relative_to(root) else path


def changed_files(prepared: Prepared, splits: Sequence[str]) -> list[str]:
    """Files whose content is not what it was when a folder was prepared: of some splits, lists of cases, merged masks.

    Files with the size, times and inode of then are not read. One that is gone does not count: a prepared folder may be
    moved without its source, and images and labels are refused where they are read.

    Args:
        prepared: the prepared folder.
        splits: those whose images and labels are looked at.
    """
    folder = prepared.folder
    items = [located(item, folder) for split in splits for item in prepared.lists.get(split, [])]
    known: dict[str, str | None] = {}
    for case in (case for cases in prepared.cases.values() for case in cases):
        known |= zip(map(str, case.get("stamp", [])[1:]), (case.get("sha256"), case.get("label_sha256")))
    sources = {str(folder / path): digest for path, digest in prepared.lists.get("sources", {}).items()}
    stated = {path: digest for item in items for _, path, digest in stated_files(item) if digest is not None}
    return [
        path
        for path, digest in (stated | sources).items()
        if os.path.isfile(path) and known.get(str(file_stamp(path))) != digest and file_digest(path) != digest
    ]


def other_option(domains: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first option that a folder was prepared with another value of: its name, the folder's value, the wanted one.

    None as a value asks for nothing, and so does the fold 0 of nothing.
    """
    wanted = {name: value for name, value in options.items() if value is not None}
    if "folds" not in wanted and wanted.get("fold") == 0:
        del wanted["fold"]  # the default, which means nothing alone
    for facts in domains.values():
        stated = {**facts, **facts.get("options", {})}
        for name, value in wanted.items():
            if name in stated and not _agrees(stated[name], list(value) if isinstance(value, tuple) else value):
                return name, stated[name], value
    return None


def _agrees(stated: Any, wanted: Any) -> bool:
    """Whether an option is what it was; a channel is stated by number and name."""
    return stated == wanted or (isinstance(stated, list) and str(wanted).lower() in [str(v).lower() for v in stated])
