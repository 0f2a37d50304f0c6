"""What each option may be: one table for every bundle, read at the door of a run, by ``check`` and by the verbs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from med3d_ext.errors import InputError
from med3d_ext.networks.resnet import ARCHITECTURES
from med3d_ext.run.overrides import walk

WORDS = {"true": True, "false": False, "null": None}  # JSON's, which a command line passes on as text
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/[^'\"@()]*)?")


@dataclass(frozen=True)
class Option:
    """The values of an option: ``rule`` says it in words, ``fits`` decides; ``null`` fits an optional one."""

    rule: str
    fits: Callable[[Any], bool]
    optional: bool = False


def _or_null(option: Option) -> Option:
    return replace(option, optional=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int, high: int | None = None) -> Option:
    rule = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Option(rule, lambda value: _is_whole(value) and low <= value and (high is None or value <= high))


def _number(rule: str, fits: Callable[[float], bool]) -> Option:
    return Option(f"a number {rule}", lambda value: _is_number(value) and fits(value))


def _one_of(*choices: Any) -> Option:
    return Option(f"one of {', '.join(map(str, choices))}", lambda value: value in choices)


def _row(rule: str, fits: Callable[[Any], bool]) -> Option:
    return Option(rule, lambda value: isinstance(value, list | tuple) and bool(value) and fits(value))


def _are_sizes(value: Any) -> bool:
    sizes = value if isinstance(value, list | tuple) else [value]
    return len(sizes) in (1, 3) and all(_is_number(size) and size > 0 for size in sizes)


def _is_device(value: Any) -> bool:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())


TEXT = Option("a text", lambda value: isinstance(value, str) and bool(value))
SWITCH = Option("true or false", lambda value: isinstance(value, bool))
PATH = Option("a path", lambda value: isinstance(value, str | os.PathLike) and str(value) != "")
RATE = _number("above 0", lambda value: value > 0)
NOT_NEGATIVE = _number("of at least 0", lambda value: value >= 0)
COUNT = _whole(1)
DEVICE = Option("cpu, or cuda or cuda:N with such a GPU in this machine", _is_device)

_ROWS = {
    "bundle_root output_dir ckpt_dir results_dir init coarse_weights weights": PATH,
    "dataset_dir store_dir negatives": _or_null(PATH),
    "device train::trainer::device validate::evaluator::device": DEVICE,
    "epochs batch_size accumulate val_interval train::trainer::max_epochs lr_scheduler::T_max": COUNT,
    "train::trainer::accumulation_steps train::dataloader::batch_size validate::dataloader::batch_size": COUNT,
    "samples_per_domain train::trainer::epoch_length": _or_null(COUNT),
    "num_workers train::dataloader::num_workers": _or_null(_whole(0, 1024)),
    "validate::dataloader::num_workers": _whole(0, 1024),
    "seed train::dataset::seed train::sampler::seed": _whole(0, 2**32 - 1),
    "seeds": _row("a list of whole numbers of at least 0", lambda value: all(map(_whole(0).fits, value))),
    "values": _row("a list of values", lambda value: True),
    "heads_first_epochs": _whole(-1),
    "warmup_epochs fold": _whole(0),
    "folds": _or_null(_whole(2)),
    "num_classes": _whole(2),
    "network_name coarse_network_name": _one_of(*ARCHITECTURES),
    "output_stride coarse_output_stride": _one_of(8, 16, 32),
    "widths": _row("two whole numbers of at least 1", lambda value: len(value) == 2 and all(map(COUNT.fits, value))),
    # Bounded, since a network's memory is not: a typing error should be a sentence.
    "spatial_size coarse_size": _or_null(
        _row(
            "three whole numbers of voxels from 8 to 1024",
            lambda value: len(value) == 3 and all(map(_whole(8, 1024).fits, value)),
        )
    ),
    "crop_spacing": Option(
        "a voxel size in mm, three of them or a table of them by domain",
        lambda value: isinstance(value, dict) or _are_sizes(value),
        optional=True,
    ),
    "hu_window": _or_null(
        _row(
            "two numbers, the lower one first",
            lambda value: len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1],
        )
    ),
    "optimizer::lr": RATE,
    "learning_rate max_gradient_norm cube_mm": _or_null(RATE),
    "head_lr_multiplier margin_mm minimum_ml optimizer::weight_decay optimizer::momentum": NOT_NEGATIVE,
    "cut_share": _number("from 0 to 1", lambda value: 0 <= value <= 1),
    "share": _number("above 0 and at most 1", lambda value: 0 < value <= 1),
    "split": _one_of("training", "validation", "test"),
    "method": _one_of("cascade", "coarse", "sliding"),
    "ties": _or_null(_one_of("exclude", "benign", "malignant")),
    "domains": Option(
        "a name, a list of names or a number of at least 1",
        lambda value: isinstance(value, str | list | tuple) and bool(value) or COUNT.fits(value),
        optional=True,
    ),
    "point_space": TEXT,
    "branch": _or_null(TEXT),
    "channel": Option(
        "the name or the number of a channel", lambda value: TEXT.fits(value) or _whole(0).fits(value), optional=True
    ),
    "init_head resume sync_batchnorm main_process skip_bad train::trainer::amp train::trainer::compile": SWITCH,
    "validate::evaluator::amp": Option(
        "false on a machine without a GPU: MONAI's evaluator has mixed precision only on CUDA",
        lambda value: isinstance(value, bool) and (not value or _is_device("cuda")),
    ),
    "save_execute_config": Option("true, false or a path", lambda value: isinstance(value, bool | str)),
}
OPTIONS = {name: option for names, option in _ROWS.items() for name in names.split()}
_PATHS = {name for name, option in OPTIONS.items() if option.rule == PATH.rule}


def check_options(options: Mapping[str, Any]) -> None:
    """Stop on a value that no run can use.

    Args:
        options: values by id, such as a whole config. References, expressions, components and ids that are not in
            the table are left to the run.

    Raises:
        InputError: an option is out of its range; the message says the range.
    """
    given = dict(walk(dict(options)))
    # A first stage in a section of its own has the options of a training.
    for name, option in (*OPTIONS.items(), *((f"coarse::{name}", option) for name, option in OPTIONS.items())):
        value = given.get(name)
        if isinstance(value, dict) or any(_is_open(part) for part in (value if isinstance(value, list) else [value])):
            continue
        if not (value is None and (option.optional or name not in options)) and not option.fits(value):
            raise InputError(f"{name} must be {option.rule}{' or null' * option.optional}, got {value!r}.")
    folds, fold = options.get("folds"), options.get("fold")
    if isinstance(folds, int) and isinstance(fold, int) and fold >= folds:
        raise InputError(f"fold must be a whole number from 0 to {folds - 1}, below folds, got {fold}.")


def _is_open(value: Any) -> bool:
    """Whether a value is known only when it is built."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def as_meant(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ids with the value that was meant by what was typed, if the two differ.

    ``true``, ``false`` and ``null`` that arrive as text, and the home folder and environment variables in paths.

    Raises:
        InputError: a path names a user or a variable that this machine does not know: a folder would get its name.
    """
    for name, value in walk(config):
        is_path = name in _PATHS
        if isinstance(value, str) and value in WORDS and not name.startswith("_meta_"):
            yield name, WORDS[value]
        elif is_path and _is_whole(value):
            yield name, str(value)  # a folder called 2024
        elif is_path and isinstance(value, str) and (path := expand_path(value, name)) != value:
            yield name, path


def on_phantoms(config: Mapping[str, Any], base: Mapping[str, Any], asked: Collection[str] = ()) -> dict[str, Any]:
    """What a run on generated phantoms takes instead of a bundle's defaults, so that it takes minutes.

    Args:
        config: the config with all overlays and overrides; its table ``phantoms`` has the values by id.
        base: the bundle's own file. What differs from it was asked for and stays.
        asked: ids that were overridden, whatever their value.

    Returns:
        the values by id; none with a ``dataset_dir``.
    """
    table = (config.get("phantoms") if config.get("dataset_dir") is None else None) or {}
    return {
        name: value
        for name, value in table.items()
        if name in config and name not in asked and config[name] == base.get(name)
    }


def expand_path(text: str, name: str) -> str:
    """A path with ``~`` and ``$NAME`` replaced; an expression of a config, which starts with ``$``, stays as it is.

    Raises:
        InputError: there is no such user or variable: a folder of that name would be made.
    """
    variable = _VARIABLE.fullmatch(text)
    if _is_open(text) and not (variable and variable[1].strip("{}") in os.environ):
        return text
    path = os.path.expanduser(os.path.expandvars(text))
    if path.startswith("~") or re.search(r"\$(\w+|\{\w+\})", path):
        raise InputError(f"{name} '{text}' names a user or a variable that this machine does not know; write the path.")
    return path
