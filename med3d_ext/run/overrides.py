"""The ids of a config: overrides that match none, ids that nothing refers to, and those that a training depends on."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from pydoc import locate
from typing import Any

from med3d_ext.errors import InputError

METADATA = "_meta_"  # where MONAI keeps the bundle's metadata: no part of the config files
NEEDED_BY_MONAI = {"imports", "initialize", "run", "finalize", "displayable_configs", "debug"}
TRACKING_SETTINGS = {"tracking", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}
_COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}

MAY_CHANGE = (
    *("epochs", "*::epochs", "*train::trainer::max_epochs"),  # the length
    *("val_interval", "*::interval"),  # how often something is validated or written
    *("store_dir", "store", "store::*", "*::store"),  # where volumes are kept that were read once
    *("dataset_dir", "negatives", "output_dir", "ckpt_dir", "bundle_root"),  # folders; their content is compared
    *("*::dataset_dir", "*::output_dir", "*::ckpt_dir", "*::bundle_root", "*::cache_dir", "*::log_dir"),
    *("*report_path", "*::num_workers", "num_workers", "*::pin_memory", "*::prefetch_factor", "*::progress"),
    *("*::checkpointing", "*::non_blocking", "train::trainer::compile", "*::compile_kwargs"),  # how it is computed
    *("device", "*::device", "main_process", "resume", "save_execute_config", "*::_desc_"),
    *("tracking_uri", "experiment_name", "run_name", "is_not_rank0", "validate::additional_metrics::*"),
)
"""Ids of a config that may change when a training resumes: they leave the weights of an epoch as they are."""

HARMLESS = (
    *("ClassificationSummary", "Curves", "DomainLoss", "EncoderExport", "EvaluationSummary"),
    *("GarbageCollector", "LogfileHandler", "MetricLogger", "MetricsSaver", "MLFlowHandler"),
    *("OverlayImage", "PredictionTable", "ProgressBar", "ResumableCheckpoint", "RunManifest"),
    *("StatsHandler", "TensorBoardImageHandler", "TensorBoardStatsHandler", "ValidationSnapshots", "WeightsCard"),
)
"""Handlers that may come, go and change: they only write."""


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
        *parents, last = keys = split_id(name)
        if keys[0] == METADATA:
            continue
        try:
            node: Any = merged
            for key in parents:
                node = _child(node, key)
            known = _has(node, last) or bool(parents and isinstance(node, dict) and _accepts(node, last))
        except KeyError:
            known = False
        if not known:
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
    from monai.bundle import ReferenceResolver
    from monai.bundle.properties import InferProperties, TrainProperties
    from monai.utils import BundlePropertyConfig

    properties = (*TrainProperties.values(), *InferProperties.values())
    used = NEEDED_BY_MONAI | TRACKING_SETTINGS | {str(facts[BundlePropertyConfig.ID]) for facts in properties}
    for place, text in texts(config):
        own = place.partition("::")[0]
        found = ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(text))
        names = {"::".join(split_id(text[1:]))} if text.startswith("%") else set(found)
        used |= {name for name in names if name.partition("::")[0] != own or "::" in name}
    for name in _unused(config, used):
        if name not in known:
            raise InputError(f"id '{name}' of {source} has no effect, nothing refers to it; {_repair(name, config)}")


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


def training_options(config: Mapping[str, Any]) -> dict[str, str]:
    """Every option of a config that the weights depend on, as JSON text by id; see :data:`MAY_CHANGE`.

    Args:
        config: the effective config, expressions as written.
    """
    options = {
        name: json.dumps(_plain(value), default=str)
        for name, value in _leaves(config)
        if not any(fnmatchcase(name, pattern) for pattern in MAY_CHANGE)
    }
    if "dataset_dir" in config:  # defaults ask whether there is one
        options["dataset_dir"] = "null" if config["dataset_dir"] is None else "a folder"
    return options


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The ids in which two results of :func:`training_options` differ, with both values, in a few words each."""

    def short(options: Mapping[str, str], name: str) -> str:
        text = options.get(name, "not set")
        return text if len(text) <= 50 else f"{text[:47]}..."

    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    return [f"{name} ({short(old, name)} -> {short(new, name)})" for name in names]


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Id and value of everything that is not a section, component or list of components."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}::{key}" if prefix else str(key))
    elif isinstance(node, list | tuple) and any(isinstance(each, dict) for each in node):
        targets = [each.get("_target_") if isinstance(each, dict) else None for each in node]
        kept = [each for each, target in zip(node, targets) if str(target).rpartition(".")[2] not in HARMLESS]
        for number, value in enumerate(kept):
            yield from _leaves(value, f"{prefix}::{number}")
    else:
        yield prefix, node


def _plain(value: Any) -> Any:
    """A command line gives 1 where a file has 1.0, and a tuple where it has a list."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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


def _has(node: Any, key: str) -> bool:
    return key in node if isinstance(node, dict) else isinstance(node, list) and key.isdigit() and int(key) < len(node)


def _child(node: Any, key: str) -> Any:
    """The item of a dictionary or list, KeyError if there is none."""
    if not _has(node, key):
        raise KeyError(key)
    return node[int(key) if isinstance(node, list) else key]


def set_by_id(config: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one item of a nested config in place; KeyError if its parent is missing."""
    node: Any = config
    for key in keys[:-1]:
        node = _child(node, key)
    node[int(keys[-1]) if isinstance(node, list) else keys[-1]] = value


def _accepts(node: Mapping[str, Any], key: str) -> bool:
    """Whether a key that ``node`` lacks would have an effect in it."""
    from monai.bundle import ComponentLocator, ConfigComponent

    if "_target_" not in node:
        # `train` and `validate` are sections: a key that nothing in them refers to does nothing
        return not any(
            name.endswith("_target_") or (isinstance(value, str) and value.startswith(("@", "$", "%")))
            for name, value in walk(node)
        )
    if key in _COMPONENT_KEYS:
        return True
    name = ConfigComponent(dict(node), locator=ComponentLocator()).resolve_module_name()
    try:
        target = locate(name) if isinstance(name, str) else None
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
        if near := difflib.get_close_matches(last, by_last, n=1):
            return f"did you mean '{by_last[near[0]]}'?"
    return "remove it, or add the id to the config."
