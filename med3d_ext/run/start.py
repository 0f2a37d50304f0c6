"""What ``python -m monai.bundle run`` was asked for, checked before anything is built.

MONAI adds an override that matches nothing to the config without a word: ``--epoch 3`` would train the default
number of ``epochs``. :class:`StartRun`, the first entry of each config's ``run``, stops on it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from med3d_ext.run.one_line import one_line_errors
from med3d_ext.run.overrides import METADATA, check_overrides, set_by_id, split_id

__all__ = ["StartRun", "check_overrides", "effective_config", "one_line_errors", "run_arguments"]

# Arguments of monai.bundle's run and of its workflow classes: no ids of a config.
_RUN_ARGUMENTS = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    *("workflow", "workflow_name", "workflow_type", "properties_path"),
}
_TRACKING_SETTINGS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


class StartRun:
    """First entry of a config's ``run``: errors in one line from here on, and a check of the overrides.

    ``{"_target_": "med3d_ext.run.start.StartRun"}``. Does nothing where the bundle is not run as a command.

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
        if split_id(name)[0] != METADATA:
            set_by_id(config, split_id(name), value)
    return config


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
