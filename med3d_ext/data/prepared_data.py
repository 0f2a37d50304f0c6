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
from med3d_ext.data.domains import choose_domains, label_map_of
from med3d_ext.data.fingerprint import digests, label_map
from med3d_ext.data.prepared_files import DATALIST, Prepared, changed_files, located, other_option, read_prepared
from med3d_ext.data.splits import SPLITS, nested_share
from med3d_ext.errors import InputError
from med3d_ext.io.facts import FACTS, read_facts
from med3d_ext.io.files import file_digest, hold
from med3d_ext.io.store import Store, used
from med3d_ext.weights.files import weights_to_continue

logger = logging.getLogger("med3d_ext.prepare")
LOCK_NAME = ".prepare.lock"


class PreparedData:
    """The data of a run: prepared if need be, by one process while others wait, then read from its two JSON files.

    Args:
        kind: what to prepare: "3dseg8", "lits", "lung" or "nodules".
        dataset_dir: the source folder, or a folder that ``prepare`` has written, which is prepared again for this run
            if it states other ``options``. None means generated phantoms.
        output_dir: the run's folder; preparation goes to ``prepared/`` in it, never into the data.
        seed: seed of the split.
        options: further arguments of the kind's preparation.
        domains: names of the domains to use, or how many in the order of the paper's table 2, see
            :func:`med3d_ext.data.domains.choose_domains`. Defaults to None: all.
        share: share of each domain's training cases to use, above 0 to 1; a larger share holds every smaller one.
        bundle_root: the bundle's folder. In a labelling server, which sends the items, there are the facts of the
            weights that it serves and no cases. Defaults to None.
        phantoms: whether generated phantoms stand for data that are not given; False in a bundle for a user's own data.
        store: where the files that preparation decodes are kept for the training. Defaults to None: nowhere.

    Attributes:
        folder: the prepared folder.
        domains: name of each domain in use to its facts.
        lists: the content of ``datalist.json``; empty without cases.
        cases: name of each domain in use to all that is known of its cases, see :class:`Prepared`.
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
        self.seed, self.share, self.store = seed, share, store
        served = weights_to_continue(bundle_root) if dataset_dir is None else None
        if served is not None:
            found = Prepared(served.parent, read_facts(served.parent)["domains"])
        else:
            if dataset_dir is None:
                dataset_dir = str(
                    generated_phantoms(kind, phantoms, "running on", "; figures say nothing about patients")
                )
            found = self._prepared(kind, Path(dataset_dir).expanduser(), Path(output_dir), options or {})
        self.folder, self.lists = found.folder, found.lists
        chosen = choose_domains(found.domains, domains)
        self.domains = {name: found.domains[name] for name in chosen}
        self.cases = {name: found.cases.get(name, []) for name in chosen}

    def _prepared(self, kind: str, source: Path, output_dir: Path, options: Mapping[str, Any]) -> Prepared:
        """What was prepared by hand, if it is as this run wants it; else the run prepares it for itself."""
        if self.store is not None and self.store.folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"the store '{self.store.folder}' is in the data '{source}'; give another --store_dir.")
        if (source / DATALIST).is_file():
            found = read_prepared(source)
            other = other_option(found.domains, options)
            # What it prepares for itself, a run looks at again.
            if changed := changed_files(found, () if other else SPLITS):
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise InputError(
                    f"'{changed[0]}'{more} changed after '{source}' was prepared; prepare it again: "
                    f"`python -m med3d_ext prepare {kind} SOURCE --output '{source}'`."
                )
            if other is None:
                return found
            if not any("options" in facts for facts in found.domains.values()):
                raise InputError(
                    f"'{source}' was prepared with {other[0]} {other[1]}, the run asks for {other[2]}; give the source "
                    "folder, or prepare it again."
                )
        folder = output_dir / "prepared" / source.resolve().name
        # Read inside, and once: another run may prepare the folder again.
        with hold(folder / LOCK_NAME), used(self.store):
            from med3d_ext.tools.layouts.prepare import PREPARE  # inference on images of a user needs no layout

            PREPARE[kind](source, folder, self.seed, **options)
            return read_prepared(folder)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What configs of version 0.1 ask for: facts and cases of every domain in one."""
        return {"domains": {name: {**facts, "cases": self.cases[name]} for name, facts in self.domains.items()}}

    def items(self, split: str) -> list[dict[str, Any]]:
        """The cases of a split as dataset items: absolute ``image`` and ``label``, ``domain``, ``sha256`` and so on.

        The label of a classification is its class, an integer, and its ``mask`` is a file. Of the training cases it is
        the chosen share.
        """
        items = []
        for item in self.lists.get(split, []):
            if item["domain"] in self.domains:
                item = located(item, self.folder)
                path, known = label_map(item), item.get("label_sha256")  # which older lists do not state
                digest = known or (file_digest(path) if path and os.path.isfile(path) else "")
                items.append({**item, "label_sha256": digest})
        return nested_share(items, self.share, self.seed) if split == "training" else items

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
        """:meth:`items` for an evaluation; an InputError when there are none, or fewer than processes."""
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
        """A digest and the name of each case of a training, which resumes on the same data only."""
        return digests(training=training, validation=validation)

    def per_domain(self, fact: str) -> dict[str, Any]:
        """One fact of every domain, as transforms take it: ``per_domain("spacing_median")``."""
        for name, domain in self.domains.items():
            if fact not in domain:
                raise InputError(
                    f"'{self.folder / FACTS}' has no '{fact}' of domain '{name}'; prepare it for this task again."
                )
        return {name: domain[fact] for name, domain in self.domains.items()}

    def label_map(self, domain: str | None = None, num_classes: int | None = None) -> dict[str, int]:
        """Value in the label files to class of the network, see :func:`med3d_ext.data.domains.label_map_of`.

        A labelling server's labels hold the network's own numbers. ``domain`` defaults to the first.
        """
        found = label_map_of(self.domain if domain is None else self.domains[domain], num_classes)
        own = {} if self.lists else {str(number): number for number in sorted(set(found.values()))}
        return {**found, **own}

    def grid(self, spatial_size: Sequence[int]) -> list[int]:
        """The grid to train on: ``spatial_size``; without cases, in a labelling server, that of the weights."""
        return list(spatial_size if self.lists else self.domain["spatial_size"])

    def grids(self, spatial_size: Sequence[int] | None) -> Sequence[int] | dict[str, Sequence[int]]:
        """The same for several domains: ``spatial_size`` if it is given, else a table from domain to grid."""
        return spatial_size if spatial_size and self.lists else self.per_domain("spatial_size")

    @property
    def domain(self) -> dict[str, Any]:
        """The only domain's facts: spacing, classes, intensity window."""
        return next(iter(self.domains.values()))


def images_to_segment(dataset_dir: str | None, kind: str, phantoms: bool = True) -> list[dict[str, str]]:
    """The images of an inference run with their names: those of ``dataset_dir``, else the phantoms of a kind.

    Of several domains of phantoms the first is taken, whose branch answers by default. ``phantoms`` False refuses to do
    without ``dataset_dir``.
    """
    if dataset_dir is None:
        folder = generated_phantoms(kind, phantoms, "segmenting")
        dataset_dir = str(next((path.parent for path in sorted(folder.glob("*/dataset.json"))), folder))
    return named_images([dataset_dir])[0]


def generated_phantoms(kind: str, allowed: bool, doing: str, remark: str = "") -> Path:
    """The phantoms that stand for data that are not given, with a warning: the folder and what is done with them."""
    if not allowed:
        raise InputError("no --dataset_dir given, and this bundle needs its own data; give --dataset_dir FOLDER.")
    from med3d_ext.tools.phantoms.dataset import phantom_dataset  # inference on images of a user needs none

    folder = phantom_dataset(kind)
    logger.warning(f"no --dataset_dir given: {doing} the generated phantoms in {folder}{remark}")
    return folder
