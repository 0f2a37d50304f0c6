"""What each option may be: one table for every bundle, read at the door of a run, by ``check`` and by the verbs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.run.overrides import walk

WORDS = {"true": True, "false": False, "null": None}  # JSON's, which a command line passes on as text
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/[^'\"@()]*)?")


@dataclass(frozen=True)
class Option:
    """The values of an option: ``rule`` says it in words, ``fits`` decides; ``null`` fits an optional one."""

    rule: str
    fits: Callable[[Any], bool]
    optional: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_sizes(value: Any) -> bool:
    sizes = value if isinstance(value, list | tuple) else [value]
    return len(sizes) in (1, 3) and all(_is_number(size) and size > 0 for size in sizes)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int, high: int | None = None, optional: bool = False) -> Option:
    rule = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Option(rule, lambda value: _is_whole(value) and low <= value and (high is None or value <= high), optional)


def _number(rule: str, fits: Callable[[float], bool], optional: bool = False) -> Option:
    return Option(f"a number {rule}", lambda value: _is_number(value) and fits(value), optional)


def _one_of(*choices: Any, optional: bool = False) -> Option:
    return Option(f"one of {', '.join(map(str, choices))}", lambda value: value in choices, optional)


def _row(rule: str, fits: Callable[[Any], bool], optional: bool = False) -> Option:
    return Option(rule, lambda value: isinstance(value, list | tuple) and bool(value) and fits(value), optional)


def _depths() -> Option:
    from med3d_ext.networks.resnet import ARCHITECTURES

    return _one_of(*ARCHITECTURES)


def _is_device(value: Any) -> bool:
    import torch  # takes a second, and a verb's help needs none of it

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
OPTIONAL_PATH = Option(PATH.rule, PATH.fits, optional=True)
RATE = _number("above 0", lambda value: value > 0)
OPTIONAL_RATE = Option(RATE.rule, RATE.fits, optional=True)
SHARE = _number("from 0 to 1", lambda value: 0 <= value <= 1)
NOT_NEGATIVE = _number("of at least 0", lambda value: value >= 0)
STRIDE = _one_of(8, 16, 32)
COUNT = _whole(1)
# Bounded, since a network's memory is not: a typing error should be a sentence.
GRID = _row(
    "three whole numbers of voxels from 8 to 1024",
    lambda value: len(value) == 3 and all(_is_whole(edge) and 8 <= edge <= 1024 for edge in value),
    optional=True,
)
DEVICE = Option("cpu, or cuda or cuda:N with such a GPU in this machine", _is_device)

OPTIONS: dict[str, Option] = {
    "bundle_root": PATH,
    "dataset_dir": OPTIONAL_PATH,
    "output_dir": PATH,
    "ckpt_dir": PATH,
    "store_dir": OPTIONAL_PATH,
    "results_dir": PATH,
    "negatives": OPTIONAL_PATH,
    "init": PATH,
    "coarse_weights": PATH,
    "weights": PATH,
    "point_space": TEXT,
    "device": DEVICE,
    "epochs": COUNT,
    "batch_size": COUNT,
    "accumulate": COUNT,
    "val_interval": COUNT,
    "samples_per_domain": _whole(1, optional=True),
    "crop_spacing": Option(
        "a voxel size in mm, three of them or a table of them by domain",
        lambda value: isinstance(value, dict) or _are_sizes(value),
        optional=True,
    ),
    "num_workers": _whole(0, 1024, optional=True),
    "seed": _whole(0, 2**32 - 1),
    "seeds": _row("a list of whole numbers of at least 0", lambda value: all(_is_whole(v) and v >= 0 for v in value)),
    "values": _row("a list of values", lambda value: True),
    "heads_first_epochs": _whole(-1),
    "warmup_epochs": _whole(0),
    "folds": _whole(2, optional=True),
    "fold": _whole(0),
    "network_name": _depths(),
    "coarse_network_name": _depths(),
    "output_stride": STRIDE,
    "coarse_output_stride": STRIDE,
    "widths": _row(
        "two whole numbers of at least 1", lambda value: len(value) == 2 and all(_is_whole(v) and v > 0 for v in value)
    ),
    "num_classes": Option("a whole number of at least 2", lambda value: _is_whole(value) and value >= 2),
    "spatial_size": GRID,
    "coarse_size": GRID,
    "hu_window": _row(
        "two numbers, the lower one first",
        lambda value: len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1],
        optional=True,
    ),
    "learning_rate": OPTIONAL_RATE,
    "max_gradient_norm": OPTIONAL_RATE,
    "cube_mm": OPTIONAL_RATE,
    "head_lr_multiplier": NOT_NEGATIVE,
    "margin_mm": NOT_NEGATIVE,
    "minimum_ml": NOT_NEGATIVE,
    "cut_share": SHARE,
    "share": _number("above 0 and at most 1", lambda value: 0 < value <= 1),
    "split": _one_of("training", "validation", "test"),
    "method": _one_of("cascade", "coarse", "sliding"),
    "ties": _one_of("exclude", "benign", "malignant", optional=True),
    "domains": Option(
        "a name, a list of names or a number of at least 1",
        lambda value: isinstance(value, str | list | tuple) and bool(value) or (_is_whole(value) and value > 0),
        optional=True,
    ),
    "branch": Option(TEXT.rule, TEXT.fits, optional=True),
    "channel": Option(
        "the name or the number of a channel",
        lambda value: _is_whole(value) and value >= 0 or isinstance(value, str) and bool(value),
        optional=True,
    ),
    "init_head": SWITCH,
    "resume": SWITCH,
    "sync_batchnorm": SWITCH,
    "main_process": SWITCH,
    "skip_bad": SWITCH,
    "save_execute_config": Option("true, false or a path", lambda value: isinstance(value, bool | str)),
    "train::trainer::max_epochs": COUNT,
    "train::trainer::epoch_length": _whole(1, optional=True),
    "train::trainer::accumulation_steps": COUNT,
    "train::trainer::amp": SWITCH,
    "train::trainer::compile": SWITCH,
    "train::trainer::device": DEVICE,
    "train::dataloader::batch_size": COUNT,
    "train::dataloader::num_workers": _whole(0, 1024, optional=True),
    "train::dataset::seed": _whole(0, 2**32 - 1),
    "train::sampler::seed": _whole(0, 2**32 - 1),
    "validate::dataloader::batch_size": COUNT,
    "validate::dataloader::num_workers": _whole(0, 1024),
    "validate::evaluator::device": DEVICE,
    "validate::evaluator::amp": Option(
        "false on a machine without a GPU: MONAI's evaluator has mixed precision only on CUDA",
        lambda value: isinstance(value, bool) and (not value or _is_device("cuda")),
    ),
    "optimizer::lr": RATE,
    "optimizer::weight_decay": NOT_NEGATIVE,
    "optimizer::momentum": NOT_NEGATIVE,
    "lr_scheduler::T_max": COUNT,
}
_PATHS = {name for name, option in OPTIONS.items() if option.rule == PATH.rule}


def check_options(options: Mapping[str, Any]) -> None:
    """Stop on a value that no run can use.

    Args:
        options: values by id, such as a whole config. References, expressions, components and ids that are not in
            the table are left to the run.

    Raises:
        InputError: an option is out of its range; the message says the range.
    """
    # A first stage in a section of its own has the options of a training.
    for name, option in (*OPTIONS.items(), *((f"coarse::{name}", option) for name, option in OPTIONS.items())):
        value = _get(options, name)
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


def _get(options: Mapping[str, Any], name: str) -> Any:
    """An option given flat, as overrides are, or nested, as in a config."""
    if name in options:
        return options[name]
    node: Any = options
    for key in name.split("::"):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def as_meant(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ids with the value that was meant by what was typed, where the two differ.

    ``true``, ``false`` and ``null`` that arrive as text, and the home folder and environment variables in paths.

    Raises:
        InputError: a path names a user or a variable that this machine does not know.
    """
    for name, value in walk(config):
        if isinstance(value, str) and value in WORDS and not name.startswith("_meta_"):
            yield name, WORDS[value]
        elif name in _PATHS and _is_whole(value):
            yield name, str(value)  # a folder called 2024
        elif name in _PATHS and isinstance(value, str) and (path := expand_path(value, name)) != value:
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
