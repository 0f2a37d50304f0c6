"""What a sample is made of, as digests: content counts, names do not, so corrections are noticed and moves are not."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from monai.data.utils import pickle_hashing

from med3d_ext.data.fingerprint import label_map
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, file_digest

FILES = ("image", "label", "mask")
"""Keys of an item whose values are files; the label of a classification is a number, and its mask may be missing."""
HASHES = ("sha256", "label_sha256")
"""Keys of an item that state the content of its image and of its label map."""


def stated_files(item: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Key, path and SHA-256 of each file of an item; None for a file that is there and whose content is not stated."""
    hashes = {item.get("image"): item.get("sha256"), label_map(item): item.get("label_sha256")}
    for key, value in item.items():
        is_path = isinstance(value, str | os.PathLike) and (key in FILES or os.path.isabs(value))
        digest = hashes.get(value) or None if is_path else None
        if is_path and key not in HASHES and (digest is not None or os.path.isfile(value)):
            yield key, str(value), digest


def item_digest(item: Mapping[str, Any], *, domain: bool = True) -> str:
    """Digest of all that a sample is made of: the content of its files and whatever else the item states.

    Args:
        item: a dataset item; files whose content it does not state are read.
        domain: whether the domain's name counts. Defaults to True.
    """
    parts = {key: value for key, value in item.items() if key not in HASHES and (domain or key != "domain")}
    parts |= {key: digest or file_digest(path) for key, path, digest in stated_files(item)}
    text = json.dumps(parts, sort_keys=True, default=lambda value: pickle_hashing(value).decode())
    return hashlib.sha256(text.encode()).hexdigest()


def check_content(item: Mapping[str, Any]) -> None:
    """Refuse an item one of whose files is no longer what the item states.

    Raises:
        InputError: a file changed.
    """
    for _, path, digest in stated_files(item):
        if digest is not None and os.path.isfile(path) and file_digest(path) != digest:  # one that is gone: the reader
            raise InputError(f"'{path}' changed after the run had begun; start the run again.")


def digests(**splits: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """A digest and the name of each case that a training depends on, sorted: what it compares when it resumes.

    The name of a single domain, which is that of its folder, does not count.

    Args:
        splits: items by what they are used for, such as ``training`` and ``validation``.
    """
    every = [(use, item) for use, items in splits.items() for item in items]
    several = len({item.get("domain") for _, item in every}) > 1
    return sorted(
        [f"{use} {item_digest(item, domain=several)[:32]}", f"{case_name(item['image'])} ({use})"]
        for use, item in every
    )


def changed_cases(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> list[str]:
    """Names of the cases that only one of two results of :func:`digests` has, or has more often."""
    before, now = Counter(map(tuple, old)), Counter(map(tuple, new))
    counts = [Counter(digest for digest, _ in each.elements()) for each in (before, now)]
    differing = {digest for digest in counts[0] | counts[1] if counts[0][digest] != counts[1][digest]}
    return sorted({name for digest, name in [*before, *now] if digest in differing})
