"""The data of a run: what ``prepare`` wrote, or what the run prepares for itself, as items and facts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from med3d_ext.data.datalists import named_images
from med3d_ext.data.domains import label_map_of
from med3d_ext.data.fingerprint import label_map
from med3d_ext.data.identity import digests, file_digest
from med3d_ext.data.prepared_files import (
    DATALIST,
    FINGERPRINT,
    change_paths,
    changed_files,
    prepared_with,
)
from med3d_ext.data.splits import SPLITS
from med3d_ext.data.subsets import choose_domains, nested_share
from med3d_ext.errors import InputError
from med3d_ext.io.files import hold, read_json
from med3d_ext.io.store import Store, used
from med3d_ext.weights.labelling import weights_to_continue

logger = logging.getLogger("med3d_ext.prepare")
LOCK_NAME = ".prepare.lock"


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
        phantoms: whether generated phantoms stand for data that are not given; False in a bundle for a user's own data.
            Defaults to True.
        store: where the files that preparation decodes are kept for the training. Defaults to None: nowhere.

    Raises:
        InputError: when there is no source, it is refused, has not these domains, changed after it was prepared, or
            holds the store.
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
        phantoms: bool = True,
        store: Store | None = None,
    ) -> None:
        self.served = weights_to_continue(bundle_root) if dataset_dir is None else None
        if self.served is not None:
            dataset_dir = str(self.served.parent)
        if dataset_dir is None:
            _check_phantoms(phantoms)
            dataset_dir = str(_phantoms(kind))
            logger.warning(
                f"no --dataset_dir given: running on generated phantoms ({dataset_dir}); "
                "figures say nothing about patients"
            )
        source = Path(dataset_dir).expanduser()
        if store is not None and store.folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"the store '{store.folder}' is inside the data '{source}'; give another --store_dir.")
        self.folder = source
        by_hand = self.served is None and (source / DATALIST).is_file()
        ready = self.served is not None or by_hand and prepared_with(source, options or {})
        if by_hand:
            self._check_unchanged(kind, SPLITS if ready else ())  # what it prepares for itself, a run looks at again
        if not ready:
            self.folder = Path(output_dir) / "prepared" / source.resolve().name
            # Read inside, and once: another run may prepare the folder again.
            with hold(self.folder / LOCK_NAME), used(store):
                _prepare(kind, source, self.folder, seed, options or {})
                self._read()
        else:
            self._read()
        every = self.fingerprint["domains"]
        if self.served is None:
            _check_options(self.folder, every, options or {})
        self.fingerprint["domains"] = {name: every[name] for name in choose_domains(every, domains)}
        self.seed, self.share = seed, share

    def _read(self) -> None:
        self.fingerprint = read_json(self.folder / FINGERPRINT)
        self.lists = {} if self.served else read_json(self.folder / DATALIST)

    def items(self, split: str) -> list[dict[str, Any]]:
        """The cases of a split as dataset items: absolute ``image`` and ``label``, ``domain`` and ``sha256``.

        The label of a classification is its class, an integer, and its ``mask`` is a file.

        Of the training cases it is the chosen share.
        """
        items = [item for item in self.lists.get(split, []) if item["domain"] in self.fingerprint["domains"]]
        items = [self._complete(item) for item in items]
        if split == "training":
            items = nested_share(items, self.share, self.seed)
        return items

    def _complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """An item with absolute paths, and the hash of its label map, which older lists do not state."""
        root = self.folder.resolve()
        item = {**item, **change_paths(item, lambda path: str((root / path).resolve()))}
        path = label_map(item)
        known = item.get("label_sha256")
        return {**item, "label_sha256": known or (file_digest(path) if path and os.path.isfile(path) else "")}

    def _check_unchanged(self, kind: str, splits: Sequence[str]) -> None:
        """What a folder that was prepared by hand was made of must be as it was then."""
        lists = read_json(self.folder / DATALIST)
        items = [self._complete(item) for split in splits for item in lists.get(split, [])]
        if changed := changed_files(self.folder, items):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise InputError(
                f"'{changed[0]}'{more} changed after '{self.folder}' was prepared; prepare it again: "
                f"`python -m med3d_ext prepare {kind} SOURCE --output '{self.folder}'`."
            )

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

    def cases_to_evaluate(self, split: str) -> list[dict[str, Any]]:
        """:meth:`items` for an evaluation, which has figures only where it has cases.

        Raises:
            InputError: when there are none, or fewer than processes to share them.
        """
        items = self.items(split)
        if not items:
            raise InputError(f"'{self.folder / DATALIST}' has no {split} cases; add labeled cases or choose a --split.")
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if len(items) < processes:
            raise InputError(f"{len(items)} {split} cases are too few for {processes} processes; start fewer.")
        return items

    @property
    def test(self) -> list[dict[str, Any]]:
        """Items that no run trains on; an InputError when there are none."""
        return self.cases_to_evaluate("test")

    @property
    def identity(self) -> str:
        """A short digest of what is trained on, see :meth:`identity_of`."""
        return self.identity_of(self.training)

    def identity_of(self, items: Sequence[dict[str, Any]]) -> str:
        """A short digest of items: images, labels and all that they state, wherever the files are."""
        content = json.dumps([digest for digest, _ in digests(training=items)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def digests(self, training: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]] = ()) -> list[list[str]]:
        """A digest and the name of each case of a training, which resumes on the same data only.

        A labelling server sends items without hashes: their files are read.
        """
        return digests(training=training, validation=validation)

    @property
    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """Cases that the weights have seen which a labelling server's training starts from; by split, as in a card."""
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

    def label_map(self, domain: str | None = None, num_classes: int | None = None) -> dict[str, int]:
        """Value in the label files to class of the network, see :func:`med3d_ext.data.domains.label_map_of`.

        A labelling server's labels hold the network's own numbers, as its metadata states them.

        Args:
            domain: its name. Defaults to None: the first.
            num_classes: classes from this number on count as the last one. Defaults to None: all classes.
        """
        facts = self.domain if domain is None else self.fingerprint["domains"][domain]
        found = label_map_of(facts, num_classes)
        own = {str(number): number for number in sorted(set(found.values()))} if self.served else {}
        return {**found, **own}

    def grid(self, spatial_size: Sequence[int]) -> list[int]:
        """The grid to train on: that of the weights that a labelling server serves, else ``spatial_size``."""
        return list(self.domain["spatial_size"] if self.served is not None else spatial_size)

    @property
    def domain(self) -> dict[str, Any]:
        """The only domain's facts: spacing, classes, intensity window."""
        return next(iter(self.fingerprint["domains"].values()))


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


def _check_phantoms(phantoms: bool) -> None:
    if not phantoms:
        raise InputError("no --dataset_dir given, and this bundle needs its own data; give --dataset_dir FOLDER.")


def images_to_segment(dataset_dir: str | None, kind: str, phantoms: bool = True) -> list[dict[str, str]]:
    """The images of an inference run with their names: those of a folder, or the phantoms' where none is given.

    Raises:
        InputError: there are none, or no folder is given and ``phantoms`` is False.
    """
    if dataset_dir is not None:
        return named_images([dataset_dir])[0]
    _check_phantoms(phantoms)
    folder = _phantoms(kind)
    # Of several domains the first, whose branch answers by default.
    folder = next((path.parent for path in sorted(folder.glob("*/dataset.json"))), folder)
    logger.warning(f"no --dataset_dir given: segmenting the generated phantoms in {folder}")
    return named_images([folder])[0]


# The doors to the tools: inference on images of a user needs neither layouts nor phantoms.


def _prepare(kind: str, src: Path, output: Path, seed: int, options: Mapping[str, Any]) -> None:
    from med3d_ext.tools.layouts.prepare import PREPARE

    PREPARE[kind](src, output, seed, **options)


def _phantoms(kind: str) -> Path:
    from med3d_ext.tools.phantoms.dataset import phantom_dataset

    return phantom_dataset(kind)
