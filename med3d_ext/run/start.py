"""What ``python -m monai.bundle run`` was asked for, checked before anything is built.

MONAI adds an override that matches nothing to the config without a word: ``--epoch 3`` would train the default
number of ``epochs``. :class:`StartRun`, the first entry of each config's ``run``, stops on it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.run.moved import refuse_moved
from med3d_ext.run.one_line import one_line_errors
from med3d_ext.run.options import as_meant, check_options, on_phantoms
from med3d_ext.run.overrides import (
    METADATA,
    TRACKING_SETTINGS,
    check_effect,
    check_overrides,
    set_by_id,
    split_id,
    walk,
)

BASES = ("inference.json", "train.json")  # what overlays are laid over; where both have an id, the training's value
# Arguments of monai.bundle's run and of its workflow classes: no ids of a config.
_RUN_ARGUMENTS = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    *("workflow", "workflow_name", "workflow_type", "properties_path"),
}


class StartRun:
    """First entry of a config's ``initialize`` and ``run``: what was asked for is checked before anything is built.

    ``{"_target_": "med3d_ext.run.StartRun"}``. From here on errors are one line. Overrides, keywords of a workflow
    and the keys of further config files must have an effect, options must be in their range
    (:mod:`med3d_ext.run.options`), and the run must run something. In the config, words such as ``false`` become
    what they mean, paths are expanded, and without data the values of the table ``phantoms`` are taken.

    Raises:
        InputError: an id has no effect, an option is out of its range, or ``run_id`` names nothing to run.
    """

    def __init__(self) -> None:
        arguments = _command_arguments(sys.argv)
        files, overrides = run_arguments()
        source = ", ".join(PurePath(file).name for file in files) if arguments else "the config"
        if arguments:
            one_line_errors()
            refuse_moved(_read(files), source)
            left = {"debug"} if arguments.get("tracking") is None else {"debug", *TRACKING_SETTINGS}
            check_overrides(_read(files), {k: v for k, v in overrides.items() if k not in left}, source)
        workflow = _workflow()
        if workflow is None:
            return
        config = workflow.parser.config
        _check_ids_to_run(workflow, config)
        base = _read(files[:1] or [str(file) for name in BASES for file in workflow.config_root_path.glob(name)])
        known = {workflow.init_id, workflow.run_id, workflow.final_id, *(name for name, _ in walk(base))}
        check_effect(config, known, source)
        if _mean(config, base, overrides):
            # In the midst of resolving this component: MONAI puts it among the items that are then read anew.
            workflow.parser.parse(reset=True)
        check_options(workflow.parser.config)


def _workflow() -> Any:
    """The workflow that builds this component, None outside one: MONAI hands a component nothing to know it by."""
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _check_ids_to_run(workflow: Any, config: dict[str, Any]) -> None:
    """``monai.bundle run train``, the form of older bundles, would build the section ``train`` and run nothing."""
    steps = config.get(workflow.run_id)
    # A list of calls; outside of a list many an expression ends in a call and builds something.
    end = ")" if isinstance(steps, list) else ".run()"
    steps = [step for step in (steps if isinstance(steps, list) else [steps]) if str(step).startswith("$")]
    others = ("imports", "initialize", "finalize")
    if workflow.run_id in others or not any(step.rstrip().endswith(end) for step in steps):
        raise InputError(
            f"'{workflow.run_id}' is not something to run: in these configs that is 'run', the default; leave the "
            "word out: python -m monai.bundle run --config_file FILE."
        )
    for name, usual in ((workflow.init_id, "initialize"), (workflow.final_id, "finalize")):
        if name != usual and name not in config:
            raise InputError(f"'{name}' is not in the config and would be left out; did you mean '{usual}'?")


def _mean(config: dict[str, Any], base: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Put what was meant into a config; whether anything changed."""
    words = dict(as_meant({key: value for key, value in config.items() if key != METADATA}))
    for name, value in words.items():
        set_by_id(config, split_id(name), value)
    instead = on_phantoms(config, base, overrides)
    config.update(instead)
    return bool(words or instead)


def run_arguments(argv: Sequence[str] | None = None) -> tuple[list[str], dict[str, Any]]:
    """Config files and overrides of a ``python -m monai.bundle run`` command, ``--args_file`` included.

    Args:
        argv: the command as ``sys.argv`` holds it. Defaults to this process's.

    Returns:
        the config files in order, and the overrides by id as written (``::`` or ``#``); both empty if the
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

    References and expressions stay as written, words and paths are what was meant by them, and without data the
    values of the table ``phantoms`` are in their places. Empty if the command is another.
    """
    files, overrides = run_arguments(argv)
    config = _read(files) if files else {}
    for name, value in overrides.items():
        if split_id(name)[0] != METADATA:
            set_by_id(config, split_id(name), value)
    _mean(config, _read(files[:1]) if files else {}, overrides)
    config.pop("phantoms", None)
    return config


def _command_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """All arguments of a run command by name, read by fire itself: its habits are not worth repeating."""
    is_bundle = PurePath(argv[0] if argv else "").parts[-3:] == ("monai", "bundle", "__main__.py")
    if not is_bundle or list(argv[1:2]) not in (["run"], ["run_workflow"]):
        return {}
    import fire
    from monai.bundle import scripts

    found: dict[str, Any] = {}

    def capturing(function: Callable[..., Any]) -> Callable[..., None]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def capture(*args: Any, **kwargs: Any) -> None:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                found.update(value if is_rest else {name: value})

        return capture

    fire.Fire({verb: capturing(getattr(scripts, verb)) for verb in ("run", "run_workflow")}, command=list(argv[1:]))
    return dict(scripts.update_kwargs(found.pop("args_file", None), **found))


def _read(files: Sequence[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    return dict(ConfigParser.load_config_files(list(files)))
