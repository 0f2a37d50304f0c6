"""``prepare``: a source folder becomes a datalist with a seeded split and a fingerprint; a bare run prepares itself."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from med3d_ext.data.datalists import list_images, read_source
from med3d_ext.data.fingerprint import sha256, summarize
from med3d_ext.data.prepared_files import (
    DATALIST,
    FINGERPRINT,
    change_paths,
    fingerprint_domain,
    known_cases,
    prepared_with,
    write_prepared,
)
from med3d_ext.data.splits import split_cases
from med3d_ext.data.subsets import choose_domains, nested_share
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.tools.layouts.prepare_3dseg8 import prepare_3dseg8
from med3d_ext.tools.layouts.prepare_lung import prepare_lung
from med3d_ext.tools.layouts.prepare_nodules import prepare_nodules
from med3d_ext.tools.phantoms.dataset import phantom_dataset
from med3d_ext.weights.labelling import weights_to_continue

logger = logging.getLogger("med3d_ext.prepare")
LITS_WINDOW = (-200.0, 250.0)  # paper, section 4.3


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
    domain = fingerprint_domain(source, known=known_cases(output), foreground=True)
    split_cases({source.name: domain["cases"]}, seed)
    domain.update(summarize(domain["cases"]))
    low, high = domain["intensity_observed"]
    domain["hu_window"] = list(hu_window) if hu_window else [max(LITS_WINDOW[0], low), min(LITS_WINDOW[1], high)]
    write_prepared({source.name: domain}, Path(src), Path(output), seed)
    return Path(output)


PREPARE: dict[str, Callable[..., Path]] = {
    "3dseg8": prepare_3dseg8,
    "lits": prepare_lits,
    "lung": prepare_lung,
    "nodules": prepare_nodules,
    "lidc": prepare_nodules,
}


class PreparedData:
    """The data of a run: prepared if need be, by one process while others wait, then read from its two JSON files.

    Args:
        kind: what to prepare: "3dseg8", "lits", "lung" or "nodules".
        dataset_dir: the source folder, or a folder that ``prepare`` has written, which is prepared again for this run
            where it states other ``options``. None means generated phantoms.
        output_dir: the run's folder; preparation goes to ``prepared/`` in it, never into the data.
        seed: seed of the split.
        options: further arguments of the kind's preparation.
        domains: names of the domains to use, or how many in the order of the paper's table 2, see
            :func:`med3d_ext.data.subsets.choose_domains`. Defaults to None: all.
        share: share of each domain's training cases to use, above 0 to 1; a larger share holds every smaller one, and
            validation and test stay whole.
        bundle_root: the bundle's folder. In a labelling server, which sends the items, the facts are those of the
            weights that it serves, and there are no cases; see :mod:`med3d_ext.weights.labelling`. Defaults to None.

    Raises:
        InputError: when the source is refused, or has not these domains.
    """

    def __init__(
        self,
        kind: str,
        dataset_dir: str | None,
        output_dir: str,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        domains: int | str | Sequence[str] | None = None,
        share: float = 1.0,
        bundle_root: str | os.PathLike | None = None,
    ) -> None:
        self.served = weights_to_continue(bundle_root) if dataset_dir is None else None
        if self.served is not None:
            dataset_dir = str(self.served.parent)
        if dataset_dir is None:
            dataset_dir = str(phantom_dataset(kind))
            logger.warning(
                f"no --dataset_dir given: running on generated phantoms ({dataset_dir}); "
                "figures say nothing about patients"
            )
        source = Path(dataset_dir).expanduser()
        self.folder = source
        ready = self.served is not None or (source / DATALIST).is_file() and prepared_with(source, options or {})
        if not ready:
            self.folder = Path(output_dir) / "prepared" / source.resolve().name
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.folder / ".lock")):
                PREPARE[kind](source, self.folder, seed, **(options or {}))
        self.fingerprint = read_json(self.folder / FINGERPRINT)
        every = self.fingerprint["domains"]
        if self.served is None:
            _check_options(self.folder, every, options or {})
        self.fingerprint["domains"] = {name: every[name] for name in choose_domains(every, domains)}
        self.seed, self.share = seed, share

    def items(self, split: str) -> list[dict[str, Any]]:
        """The cases of a split as dataset items: absolute ``image`` and ``label``, ``domain`` and ``sha256``.

        The label of a classification is its class, an integer, and its ``mask`` is a file.

        Of the training cases it is the chosen share.
        """
        items = [] if self.served else read_json(self.folder / DATALIST).get(split, [])
        items = [item for item in items if item["domain"] in self.fingerprint["domains"]]
        if split == "training":
            items = nested_share(items, self.share, self.seed)
        root = self.folder.resolve()
        return [{**item, **change_paths(item, lambda path: str((root / path).resolve()))} for item in items]

    @property
    def training(self) -> list[dict[str, Any]]:
        """Items to train on."""
        return self.items("training")

    @property
    def validation(self) -> list[dict[str, Any]]:
        """Items for the choice of the best epoch; the training items of domains that are too small to spare any."""
        items = self.items("validation")
        covered = {item["domain"] for item in items}
        return items + [item for item in self.training if item["domain"] not in covered]

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
        return self.identity_of(self.training)

    def identity_of(self, items: Sequence[dict[str, Any]]) -> str:
        """:attr:`identity` of other items, which need no hashes: a labelling server sends image and label alone."""
        content = "".join(sorted(_item_digest(item) for item in items))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """Cases that the weights have seen which a labelling server's training goes on from; by split, as in a card."""
        card = self.served.with_name("card.json") if self.served else None
        return read_json(card).get("cases", {}) if card is not None and card.is_file() else {}

    def per_domain(self, fact: str) -> dict[str, Any]:
        """One fact of every domain, as transforms take it: ``per_domain("spacing_median")``.

        Raises:
            InputError: when a domain lacks the fact.
        """
        path = self.folder / FINGERPRINT
        for name, domain in self.fingerprint["domains"].items():
            if fact not in domain:
                raise InputError(
                    f"'{path}' has no '{fact}' of domain '{name}'; prepare the folder for this task again."
                )
        return {name: domain[fact] for name, domain in self.fingerprint["domains"].items()}

    @property
    def domain(self) -> dict[str, Any]:
        """The only domain's facts: spacing, classes, intensity window."""
        return next(iter(self.fingerprint["domains"].values()))


def _item_digest(item: dict[str, Any]) -> str:
    if "sha256" in item:
        return str(item["sha256"] + item["domain"])
    return sha256(item["image"]) + sha256(item["label"])


def _check_options(folder: Path, domains: dict[str, dict[str, Any]], options: dict[str, Any]) -> None:
    """A folder that was prepared by hand keeps its facts: options that say otherwise would do nothing.

    Raises:
        InputError: an option differs from what the folder was prepared with.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "folds" not in given:
        given.pop("fold", None)  # a fold of nothing
    for domain in domains.values():
        for name, value in given.items():
            if name in domain and domain[name] != (list(value) if isinstance(value, tuple) else value):
                raise InputError(
                    f"'{folder}' was prepared with {name} {domain[name]}, the run asks for {value}; give the source "
                    "folder, or prepare it again."
                )


def images_to_segment(dataset_dir: str | None, kind: str) -> list[dict[str, str]]:
    """The images of an inference run: those of a folder, or the phantoms' where none is given."""
    if dataset_dir is not None:
        return list_images(dataset_dir)
    folder = phantom_dataset(kind)
    # Of several domains the first, whose branch answers by default.
    folder = next((path.parent for path in sorted(folder.glob("*/dataset.json"))), folder)
    logger.warning(f"no --dataset_dir given: segmenting the generated phantoms in {folder}")
    return list_images(folder)
