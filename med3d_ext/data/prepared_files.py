"""The two files that ``prepare`` writes: the facts of each domain, and the cases with all that is known of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import Source
from med3d_ext.data.fingerprint import FILES, fingerprint_domain, stated_files, summarize
from med3d_ext.data.splits import SPLITS, split_cases
from med3d_ext.errors import Faults, FaultyCases, InputError
from med3d_ext.io.facts import FACTS, former_cases, read_facts, write_facts
from med3d_ext.io.files import file_digest, file_stamp, read_json, write_json

logger = logging.getLogger("med3d_ext.prepare")
DATALIST = "datalist.json"
IN_ENTRY = (*FILES, "sha256", "label_sha256", "split", "parts")  # of a case, what is not for the scan's table
LISTS = ("dataset.json", "*/dataset.json", "domains.json", "nodules.csv")  # what a source says of its cases
Facts = dict[str, Any]


def prepare_domains(
    sources: Mapping[str, Source],
    facts_of: Callable[[str, Facts], Facts],
    src: str | os.PathLike,
    output: str | os.PathLike,
    seed: int,
    faults: Faults,
    remarks: Callable[[], str] | None = None,
    foreground: bool = True,
    default_channel: int | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> Path:
    """Read all cases of some domains, split them and write ``facts.json`` and ``datalist.json``.

    Args:
        sources: name of each domain to its cases, before their files are read.
        facts_of: from a domain's name and what was found in its files (``classes``, ``cases`` with their split, and
            their summary) to the facts that its task adds.
        src: the source folder.
        output: the folder to write into; cases that it, or ``src``, knows already are not read again.
        seed: seed of the split, which is drawn over all domains at once.
        faults: collects the faulty cases, which are left out or refused together.
        remarks: what else the summary line reports, asked for when all is known. Defaults to None: nothing.
        foreground: refuse labels without foreground.
        default_channel: the channel of sets of which none is chosen; None wants 3D images.
        folds: see :func:`split_cases`, as ``fold``.
    """
    for option, value in (("folds", folds), ("fold", fold)):
        if value is not None and not isinstance(value, int):
            raise InputError(f"{option} must be a whole number, got {value!r}.")
    if folds is None and fold:
        raise InputError(f"fold {fold} needs the number of parts; add --folds.")
    src, output = Path(src).expanduser(), Path(output)
    known: dict[int | str | None, list[dict[str, Any]]] = {}  # channel to cases
    for folder in dict.fromkeys((output, src)):
        with suppress(InputError):  # nothing was prepared, or it is damaged: all is read anew
            before = read_prepared(folder)
            for name, facts in before.domains.items():
                known.setdefault(facts.get("channel"), []).extend(before.cases[name])
    domains: dict[str, Facts] = {}
    for name, source in sources.items():
        channel = default_channel if source.channel is None else source.channel
        cases = fingerprint_domain(source, known.get(channel, []), channel, foreground, faults)
        if not cases:
            raise FaultyCases(faults.sentences, len(faults.sentences))
        domains[name] = {"classes": {str(value): title for value, title in source.classes.items()}, "cases": cases}
        if source.chosen is not None:
            domains[name]["channel"] = source.channel
            domains[name]["options"] = {"channel": list(source.chosen)}
    faults.settle(sum(len(domain["cases"]) for domain in domains.values()) + len(faults.sentences), logger)
    split_cases({name: domain["cases"] for name, domain in domains.items()}, seed, folds, fold)
    for name, domain in domains.items():
        domain |= summarize(domain["cases"])
        facts = facts_of(name, domain)
        options = {**facts.pop("options", {}), **domain.get("options", {})}
        domain |= {**facts, **({"options": options} if options else {})}
        for sentence in absent_classes(domain, domain["cases"]):
            logger.warning(f"{name}: {sentence}")
    more = remarks() if remarks is not None else ""
    more += f"; {len(faults.sentences)} faulty left out" if faults.sentences else ""
    return _write(domains, src, output, seed, more)


def _write(domains: Mapping[str, Facts], src: Path, output: Path, seed: int, remarks: str) -> Path:
    """Write both files, each atomically; what lies in ``output`` is listed relative to it, so that it can be moved.

    The entries of the list are fit for batches; what the scan found of each case is under ``scan``, by domain and
    SHA-256 of the image.
    """
    root, inside = output.resolve(), output.resolve() == src.resolve()

    def portable(path: str) -> str:
        return f"./{os.path.relpath(path, root)}" if inside or Path(path).is_relative_to(root) else path

    lists: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    scan: dict[str, dict[str, Any]] = {name: {} for name in domains}
    tables, around, sources = {}, set(), []
    for name, domain in domains.items():
        stated = ["modality"] if all("modality" in case for case in domain["cases"]) else []  # a batch needs equal keys
        stated += ["sha256", "label_sha256"]
        for case in domain["cases"]:
            files = {key: case[key] for key in FILES if case.get(key) is not None}  # the label may be a class
            files = {key: portable(value) if isinstance(value, str) else value for key, value in files.items()}
            channel = {"channel": domain["channel"]} if "channel" in domain else {}
            facts = {key: case[key] or "" for key in stated}  # None would make no batch
            lists[case["split"]].append({**files, "domain": name, **channel, **facts})
            scan[name][case["sha256"]] = {key: value for key, value in case.items() if key not in IN_ENTRY}
            around |= set(Path(case["image"]).parents)
            sources += case.get("parts", [])
        label_map = domain.get("label_map", {value: value for value in domain["classes"]})
        tables[name] = {value: domain["classes"][str(target)] for value, target in label_map.items()}
    listed = [path for pattern in LISTS for path in sorted(src.resolve().glob(pattern)) if path.is_file()]
    sources = [str(path) for path in listed if path.parent in around or path.parent == src.resolve()] + sources
    write_facts(output, {"seed": seed, "domains": domains})
    content = {"name": src.resolve().name, "labels": tables if len(tables) > 1 else next(iter(tables.values()))}
    digests = {portable(path): file_digest(path) for path in sources}
    write_json(output / DATALIST, {**content, "sources": digests, **lists, "scan": scan})
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in lists.items()) + remarks
    logger.info(f"prepared {src}: {counts}; {DATALIST} and {FACTS} are in {output}")
    return output


def absent_classes(domain: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each class of a domain's facts that no training case holds, a sentence that says so and where it is."""
    raw = domain.get("label_map") or {}
    holders: dict[str, set[str]] = {}
    for case in cases:
        for value in case.get("labels", {}) if isinstance(case["label"], str) else [case["label"]]:
            holders.setdefault(str(raw.get(str(value), value)), set()).add(case["split"])
    for value, name in domain["classes"].items():
        splits = [split for split in SPLITS if split in holders.get(str(value), set())]
        if "training" not in splits:
            others = f"{' and '.join(splits)} cases do" if splits else "no case does"
            yield f"no training case holds the class {value} ({name}), {others}: it cannot be learned"


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, also one of version 0.1."""

    folder: Path
    domains: dict[str, Facts]
    lists: dict[str, Any] = field(default_factory=dict)  # datalist.json
    # Name of a domain to its scanned cases: files with absolute paths, split, hashes, and what the scan has found:
    # shape, spacing, orientation, intensity, labels, target_box, stamp.
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_prepared(folder: Path) -> Prepared:
    """Read what :func:`prepare_domains` has written; an InputError if one of the two files is missing or damaged."""
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


def changed_files(prepared: Prepared, splits: Sequence[str]) -> list[str]:
    """Files whose content is not what it was when a folder was prepared: of some splits, lists of cases, merged masks.

    Files with the size, times and inode of then are not read. One that is gone does not count: a prepared folder may be
    moved without its source, and images and labels are refused where they are read.
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

    None as a value asks for nothing, and so does the fold 0 of nothing. A channel is stated by number and name.
    """
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    for facts in domains.values():
        stated = {"folds": None, **facts, **facts.get("options", {})}
        for name, value in wanted.items():
            if value is None or name not in stated or (name == "fold" and value == 0 and wanted.get("folds") is None):
                continue
            old = stated[name]
            if old != value and not (isinstance(old, list) and str(value).lower() in [str(v).lower() for v in old]):
                return name, old, options[name]
    return None
