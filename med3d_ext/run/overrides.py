"""What would change nothing is found before a run begins: overrides that match no id, ids that nothing refers to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from pydoc import locate
from typing import Any

from med3d_ext.errors import InputError

METADATA = "_meta_"  # where MONAI keeps the bundle's metadata: no part of the config files
NEEDED_BY_MONAI = {"imports", "initialize", "run", "finalize", "displayable_configs", "debug"}
TRACKING_SETTINGS = {"tracking", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}
_COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}


def check_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any], source: str = "the config") -> None:
    """Stop on an override that would change nothing.

    Legal are an id of the config, an argument of a component that the config leaves at its default, and a new key
    of a plain dictionary of values.

    Args:
        config: the merged content of the config files, without the overrides.
        overrides: new values by id.
        source: how the message calls the config.

    Raises:
        InputError: an override matches nothing; the message names the nearest id.
    """
    merged = dict(deepcopy(config))
    for name, value in overrides.items():
        keys = split_id(name)
        if keys[0] == METADATA:
            continue
        if not _known(merged, keys):
            raise InputError(f"override '{name}' matches no id of {source}; {_repair('::'.join(keys), merged)}")
        set_by_id(merged, keys, value)


def check_effect(config: Mapping[str, Any], known: Collection[str] = (), source: str = "the config") -> None:
    """Stop on an id that does nothing: no other item of the config refers to it.

    Only what a component is made of, or what MONAI and its tools look for by name, needs no reference; nor does an id
    that starts with an underscore, such as a note.

    Args:
        config: a whole config, its files and overrides merged.
        known: ids that are legal all the same: those of the bundle's own file, from which an overlay may take the
            only reference, and those that are run.
        source: how the message calls the config.

    Raises:
        InputError: an id has no effect; the message names the nearest.
    """
    from monai.bundle.properties import InferProperties, TrainProperties
    from monai.utils import BundlePropertyConfig

    needed = NEEDED_BY_MONAI | TRACKING_SETTINGS
    needed |= {str(facts[BundlePropertyConfig.ID]) for facts in (*TrainProperties.values(), *InferProperties.values())}
    used = set(needed)
    for place, text in texts(config):
        own = place.partition("::")[0]
        used |= {name for name in _references(text) if name.partition("::")[0] != own or "::" in name}
    for name in _unused(config, used):
        if name in known:
            continue
        raise InputError(f"id '{name}' of {source} has no effect, nothing refers to it; {_repair(name, config)}")


def _references(text: str) -> set[str]:
    from monai.bundle import ReferenceResolver

    if text.startswith("%"):
        return {"::".join(split_id(text[1:]))}
    return set(ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(text)))


def _unused(config: Mapping[str, Any], used: Collection[str], prefix: str = "") -> Iterator[str]:
    """Ids that are not used, neither whole nor in part; what is used whole is not looked into."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_") or name in used:
            continue
        if not any(other.startswith(f"{name}::") for other in used):
            yield name
        if isinstance(value, dict) and "_target_" not in value:
            yield from _unused(value, used, f"{name}::")


def truth(name: str, value: bool | str) -> bool:
    """``value`` as a bool; a command line gives ``false`` as a word, which Python takes for true.

    Raises:
        InputError: ``value`` is neither true nor false.
    """
    words = {"true": True, "false": False}
    if str(value).lower() not in words:
        raise InputError(f"{name} must be true or false, got {value!r}.")
    return words[str(value).lower()]


def split_id(name: str) -> list[str]:
    """The keys of an id, whichever of MONAI's two separators it is written with."""
    return name.replace("#", "::").split("::")


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every item of a config, the nested ones too, with its id."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from walk(value, f"{prefix}{key}::")


def texts(config: Any) -> Iterator[tuple[str, str]]:
    """Every text of a config with its id; descriptions are for people and left out."""
    for name, value in walk(config):
        if isinstance(value, str) and name.rpartition("::")[2] != "_desc_":
            yield name, value


def _child(node: Any, key: str) -> Any:
    """The item of a dictionary or list, KeyError if there is none."""
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    if isinstance(node, dict):
        return node[key]
    raise KeyError(key)


def set_by_id(config: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one item of a nested config in place; KeyError where its parent is missing."""
    node: Any = config
    for key in keys[:-1]:
        node = _child(node, key)
    node[int(keys[-1]) if isinstance(node, list) else keys[-1]] = value


def _known(config: Mapping[str, Any], keys: Sequence[str]) -> bool:
    node: Any = config
    for depth, key in enumerate(keys):
        try:
            node = _child(node, key)
        except KeyError:
            is_last = depth == len(keys) - 1
            return is_last and depth > 0 and isinstance(node, dict) and _accepts(node, key)
    return True


def _accepts(node: Mapping[str, Any], key: str) -> bool:
    """Whether a key that ``node`` lacks would have an effect in it."""
    if "_target_" not in node:
        # `train` and `validate` are sections: a key that nothing in them refers to does nothing
        return not any(_is_wired(value) for value in node.values())
    return key in _COMPONENT_KEYS or _takes(node, key)


def _is_wired(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_is_wired(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_is_wired(inner) for inner in value)
    return isinstance(value, str) and value.startswith(("@", "$", "%"))


def _takes(component: Mapping[str, Any], key: str) -> bool:
    from monai.bundle import ComponentLocator, ConfigComponent

    name = ConfigComponent(dict(component), locator=ComponentLocator()).resolve_module_name()
    target = locate(name) if isinstance(name, str) else None
    try:
        parameters = inspect.signature(target).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):  # an expression, a class written in C, or a mistake that MONAI names
        return True
    return key in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _repair(name: str, config: Mapping[str, Any]) -> str:
    """The end of the message: the nearest id, first among the neighbors, then anywhere, by its last part."""
    ids = [key for key, _ in walk(dict(config)) if key != name]
    parent, _, last = name.rpartition("::")
    for group in ([key for key in ids if key.rpartition("::")[0] == parent], ids):
        by_last = {key.rpartition("::")[2]: key for key in reversed(group)}
        near = difflib.get_close_matches(last, by_last, n=1)
        if near:
            return f"did you mean '{by_last[near[0]]}'?"
    return "remove it, or add the id to the config."
