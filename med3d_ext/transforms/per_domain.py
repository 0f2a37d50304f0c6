"""Arguments that differ from domain to domain: one value for all, or a table from an item's ``domain`` to its value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

DOMAIN_KEY = "domain"


def value_of(argument: str, value: Any, item: Mapping[Hashable, Any]) -> Any:
    """The value that an item takes: ``value`` itself, or its domain's entry where ``value`` is a table.

    An item without a domain takes the entry of a table that has a single one: a list of images and labels that a
    labelling tool sends states no domain.

    Args:
        argument: name of the argument, for the error.
        value: one value for all items, or a mapping from domain to value.
        item: the item, with its domain's name under ``domain``.

    Raises:
        KeyError: when the table has no entry for the item.
    """
    if not isinstance(value, Mapping):
        return value
    name = item.get(DOMAIN_KEY)
    if name is None and len(value) == 1:
        return next(iter(value.values()))
    if name not in value:
        raise KeyError(f"{argument} must have an entry for the item's domain, one of {list(value)}, got {name!r}.")
    return value[name]
