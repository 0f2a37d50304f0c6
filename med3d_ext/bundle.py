"""What ``python -m monai.bundle run`` was asked for, checked before anything is built.

MONAI adds an override that matches nothing to the config without a word: ``--epoch 3`` would train the default
number of ``epochs``. :class:`StartRun`, the first entry of each config's ``run``, stops on it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path, PurePath
from pydoc import locate
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.one_line import one_line_errors

__all__ = ["StartRun", "check_overrides", "effective_config", "one_line_errors", "run_arguments"]

# Arguments of monai.bundle's run and of its workflow classes: no ids of a config.
_RUN_ARGUMENTS = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    *("workflow", "workflow_name", "workflow_type", "properties_path"),
}
_TRACKING_SETTINGS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}
_COMPONENT_KEYS = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
_METADATA = "_meta_"


class StartRun:
    """First entry of a config's ``run``: errors in one line from here on, and a check of the overrides.

    ``{"_target_": "med3d_ext.bundle.StartRun"}``. Does nothing where the bundle is not run as a command.

    Raises:
        InputError: an override matches no id of the config files.
    """

    def __init__(self) -> None:
        arguments = _command_arguments(sys.argv)
        if not arguments:
            return
        one_line_errors()
        files, overrides = run_arguments()
        if arguments.get("tracking") is not None:
            overrides = {key: value for key, value in overrides.items() if key not in _TRACKING_SETTINGS}
        check_overrides(_read(files), overrides, ", ".join(PurePath(file).name for file in files))


def run_arguments(argv: Sequence[str] | None = None) -> tuple[list[str], dict[str, Any]]:
    """Config files and overrides of a ``python -m monai.bundle run`` command, ``--args_file`` included.

    Args:
        argv: the command as ``sys.argv`` holds it. Defaults to this process's.

    Returns:
        the config files in order, and the overrides by id as written (``::`` or ``#``); both empty where the
        command is another.
    """
    arguments = _command_arguments(sys.argv if argv is None else argv)
    files = arguments.get("config_file") or []
    if isinstance(files, str):
        # MONAI's reading: a comma separates files unless a file has it in its name
        files = [files] if Path(files).is_file() else files.split(",")
    overrides = {key: value for key, value in arguments.items() if key not in _RUN_ARGUMENTS}
    return [str(file) for file in files], overrides


def effective_config(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The config of a ``monai.bundle run`` command: its files merged as MONAI does, then the overrides.

    References and expressions stay as written. Empty where the command is another.
    """
    files, overrides = run_arguments(argv)
    config = _read(files) if files else {}
    for name, value in overrides.items():
        if _split(name)[0] != _METADATA:
            _set(config, _split(name), value)
    return config


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
        keys = _split(name)
        if keys[0] == _METADATA:
            continue
        if not _known(merged, keys):
            raise InputError(f"override '{name}' matches no id of {source}; {_repair('::'.join(keys), merged)}")
        _set(merged, keys, value)


def _command_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """All arguments of a run command by name, read by fire itself: its habits are not worth repeating."""
    if PurePath(argv[0] if argv else "").parts[-3:] != ("monai", "bundle", "__main__.py"):
        return {}
    if list(argv[1:2]) not in (["run"], ["run_workflow"]):
        return {}
    import fire
    from monai.bundle import scripts

    found: dict[str, Any] = {}
    verbs = {verb: _capturing(getattr(scripts, verb), found) for verb in ("run", "run_workflow")}
    fire.Fire(verbs, command=list(argv[1:]))
    return dict(scripts.update_kwargs(found.pop("args_file", None), **found))


def _capturing(function: Callable[..., Any], found: dict[str, Any]) -> Callable[..., None]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def capture(*args: Any, **kwargs: Any) -> None:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            found.update(value if is_rest else {name: value})

    return capture


def _read(files: Sequence[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    return dict(ConfigParser.load_config_files(list(files)))


def _split(name: str) -> list[str]:
    return name.replace("#", "::").split("::")


def _child(node: Any, key: str) -> Any:
    """The item of a dictionary or list, KeyError where there is none."""
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    if isinstance(node, dict):
        return node[key]
    raise KeyError(key)


def _set(config: dict[str, Any], keys: Sequence[str], value: Any) -> None:
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


def _ids(node: Any, prefix: str = "") -> Iterator[str]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _ids(value, f"{prefix}{key}::")


def _repair(name: str, config: Mapping[str, Any]) -> str:
    """The end of the message: the nearest id, first among the neighbors, then anywhere, by its last part."""
    ids = list(_ids(dict(config)))
    parent, _, last = name.rpartition("::")
    for group in ([key for key in ids if key.rpartition("::")[0] == parent], ids):
        by_last = {key.rpartition("::")[2]: key for key in reversed(group)}
        near = difflib.get_close_matches(last, by_last, n=1)
        if near:
            return f"did you mean '{by_last[near[0]]}'?"
    return "remove it, or add the id to the config."
