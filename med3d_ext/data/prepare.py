"""``prepare``: a source folder becomes a datalist with a seeded split and a fingerprint; a bare run prepares itself."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from med3d_ext.data.datalists import SPLITS, Source, list_images, read_json, read_source, split_cases, write_json
from med3d_ext.data.fingerprint import read_header, repair_spacing, scan_cases, summarize
from med3d_ext.data.phantoms import phantom_dataset
from med3d_ext.errors import InputError

logger = logging.getLogger("med3d_ext.prepare")
DATALIST, FINGERPRINT = "datalist.json", "fingerprint.json"
LITS_WINDOW = (-200.0, 250.0)  # paper, section 4.2


def prepare_lits(
    src: str | os.PathLike, output: str | os.PathLike, seed: int = 0, hu_window: Sequence[float] | None = None
) -> Path:
    """Prepare a liver data set: Decathlon's Task03 or LiTS's own volumes; tumor voxels count as liver in training.

    Args:
        src: the source folder.
        output: folder for ``datalist.json`` and ``fingerprint.json``.
        seed: seed of the split.
        hu_window: intensity window (HU). Defaults to the paper's [-200, 250], narrowed to what the images hold: a CT
            that was cut at -125 HU gives other inputs under [-200, 250] than the same CT uncut.

    Returns:
        the output folder.
    """
    source = read_source(src)
    domain = fingerprint_domain(source, known=_known_cases(output), foreground=True)
    split_cases({source.name: domain["cases"]}, seed)
    domain.update(summarize(domain["cases"]))
    low, high = domain["intensity_range"]
    domain["hu_window"] = list(hu_window) if hu_window else [max(LITS_WINDOW[0], low), min(LITS_WINDOW[1], high)]
    write_prepared({source.name: domain}, Path(src), Path(output), seed)
    return Path(output)


def fingerprint_domain(
    source: Source, known: list[dict[str, Any]], channel: int | None = None, foreground: bool = False
) -> dict[str, Any]:
    """Both passes over one source: header facts, then hashes, intensities and label values of every case."""
    headers = [read_header(case["image"]) for case in source.cases]
    if channel is None and any(header["channels"] > 1 for header in headers):
        number = next(number for number, header in enumerate(headers) if header["channels"] > 1)
        raise InputError(f"'{source.cases[number]['image']}' is a 4D file; this task takes 3D volumes: split it.")
    for number in repair_spacing(headers):
        spacing = headers[number]["spacing"]
        logger.warning(
            f"'{source.cases[number]['image']}' has no usable voxel spacing; taking the mean of the others, {spacing} mm"
        )
    cases = [{**case, **header} for case, header in zip(source.cases, headers)]
    scan_cases(cases, known, channel, foreground, logger.info)
    _check_label_values(source, cases)
    return {"classes": {str(value): name for value, name in source.classes.items()}, "cases": cases}


def _check_label_values(source: Source, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        unknown = sorted(set(map(int, case["labels"])) - set(source.classes))
        if unknown:
            classes = sorted(source.classes)
            raise InputError(
                f"label '{case['label']}' holds the value {unknown[0]}, {source.name} has the classes {classes}; correct one."
            )


def _known_cases(output: str | os.PathLike) -> list[dict[str, Any]]:
    path = Path(output) / FINGERPRINT
    if not path.is_file():
        return []
    return [case for domain in read_json(path).get("domains", {}).values() for case in domain["cases"]]


def write_prepared(domains: Mapping[str, dict[str, Any]], src: Path, output: Path, seed: int) -> None:
    """Write ``fingerprint.json`` and, in the Decathlon's format, ``datalist.json``; each atomically."""
    inside = output.resolve() == src.resolve()
    lists: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for name, domain in domains.items():
        for case in domain["cases"]:
            files = {key: _portable(case[key], src.resolve()) if inside else case[key] for key in ("image", "label")}
            lists[case["split"]].append({**files, "domain": name, "sha256": case["sha256"]})
    first = next(iter(domains.values()))
    labels = first["classes"] if len(domains) == 1 else {name: domain["classes"] for name, domain in domains.items()}
    write_json(output / FINGERPRINT, {"seed": seed, "domains": dict(domains)})
    write_json(output / DATALIST, {"name": src.resolve().name, "labels": labels, **lists})
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in lists.items())
    logger.info(f"prepared {src}: {counts}; datalist and fingerprint are in {output}")


def _portable(path: str, root: Path) -> str:
    return f"./{os.path.relpath(path, root)}"


PREPARE = {"lits": prepare_lits}


class PreparedData:
    """The data of a run: prepared if need be, by one process while others wait, then read from its two JSON files.

    Args:
        kind: what to prepare: "lits".
        dataset_dir: the source folder, or a folder that ``prepare`` has written. None means generated phantoms.
        output_dir: the run's folder; preparation goes to ``prepared/`` in it, never into the data.
        seed: seed of the split.
        options: further arguments of the kind's preparation.
    """

    def __init__(
        self, kind: str, dataset_dir: str | None, output_dir: str, seed: int = 0, options: dict[str, Any] | None = None
    ) -> None:
        if dataset_dir is None:
            dataset_dir = str(phantom_dataset(kind))
            logger.warning(
                f"no --dataset_dir given: running on generated phantoms ({dataset_dir}); figures say nothing about patients"
            )
        source = Path(dataset_dir).expanduser()
        self.folder = source
        if not (source / DATALIST).is_file():
            self.folder = Path(output_dir) / "prepared" / source.resolve().name
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.folder / ".lock")):
                PREPARE[kind](source, self.folder, seed, **(options or {}))
        self.fingerprint = read_json(self.folder / FINGERPRINT)

    def items(self, split: str) -> list[dict[str, Any]]:
        """The cases of a split as dataset items: absolute ``image`` and ``label``, ``domain`` and ``sha256``."""
        items = read_json(self.folder / DATALIST).get(split, [])
        root = self.folder.resolve()
        return [{**item, **{key: str((root / item[key]).resolve()) for key in ("image", "label")}} for item in items]

    @property
    def training(self) -> list[dict[str, Any]]:
        """Items to train on."""
        return self.items("training")

    @property
    def validation(self) -> list[dict[str, Any]]:
        """Items for the choice of the best epoch; the training items where a data set is too small to spare any."""
        return self.items("validation") or self.training

    @property
    def test(self) -> list[dict[str, Any]]:
        """Items that no run trains on.

        Raises:
            InputError: when there are none.
        """
        items = self.items("test")
        if not items:
            raise InputError(f"'{self.folder / DATALIST}' has no test cases; add labelled cases or name some as test.")
        return items

    @property
    def identity(self) -> str:
        """A short digest of what is trained on: a training is continued on the same data only."""
        content = "".join(sorted(item["sha256"] + item["domain"] for item in self.training))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def domain(self) -> dict[str, Any]:
        """The only domain's facts: spacing, classes, intensity window."""
        return next(iter(self.fingerprint["domains"].values()))


def images_to_segment(dataset_dir: str | None, kind: str) -> list[dict[str, str]]:
    """The images of an inference run: those of a folder, or the phantoms' where none is given."""
    if dataset_dir is not None:
        return list_images(dataset_dir)
    folder = phantom_dataset(kind)
    logger.warning(f"no --dataset_dir given: segmenting the generated phantoms in {folder}")
    return list_images(folder)
