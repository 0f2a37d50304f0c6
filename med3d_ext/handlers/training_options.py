"""What a training was asked for, in a form that a resumed one can be compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

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

NOT_SET = "not set"


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
    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    return [f"{name} ({_short(old.get(name, NOT_SET))} -> {_short(new.get(name, NOT_SET))})" for name in names]


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Id and value of everything that is not a section, component or list of components."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}::{key}" if prefix else str(key))
    elif isinstance(node, list | tuple) and any(isinstance(each, Mapping) for each in node):
        kept = [each for each in node if not _is_harmless(each)]
        for number, value in enumerate(kept):
            yield from _leaves(value, f"{prefix}::{number}")
    else:
        yield prefix, node


def _is_harmless(node: Any) -> bool:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return isinstance(target, str) and target.rpartition(".")[2] in HARMLESS


def _plain(value: Any) -> Any:
    """A command line gives 1 where a file has 1.0, and a tuple where it has a list."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:47]}..."
