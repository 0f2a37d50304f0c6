"""The configs of a user's own bundle: the paper's, with the user's classes and a recipe for few cases in them.

One stage is the paper's transfer to the lungs, two stages are its LiTS cascade (section 3.3), whose coarse part is
trained in the same run and is under ``coarse``. What differs from the paper's is in ``templates/recipe.json``:
``recipe``, what training from few cases needs (measured in docs/own_task.md), the same in both stages and in one; and
the parts that are put in the paper's place. The coarse network is not the paper's 1x1x1 convolution: at stride 8 of a
whole scan a pancreas is a cell or two.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.io.files import read_json
from med3d_ext.run.overrides import set_by_id
from med3d_ext.tools.new_bundle.plan import Plan

TEMPLATES = {1: "lung_segmentation", 2: "lits_fine"}
COARSE = "lits_coarse"
CONFIGS = ("train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate")
SMALLEST_PART = 0.1
"""Of the largest coarse component: an organ may be in several pieces, and what is lost to the region is lost."""

TAKEN = ("initial_weights", "network", "loss", "optimizer", "lr_scheduler", "train", "validate")
SHARED = ("train::preprocessing_transforms", "train::intensity_transforms")
ELSEWHERE = {
    "grid": "coarse::spatial_size",
    "network_name": "coarse_network_name",
    "output_stride": "coarse_output_stride",
}
REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")
HANDLERS = (
    *("EpochSeed", "FreezeEncoder", "LrScheduleHandler", "EpochValidation", "ResumableCheckpoint"),
    *("RunManifest", "Curves", "ProgressBar", "WeightsCard"),
)
"""Those of ``lits_coarse`` that train a first stage or write what it leaves."""


def own_configs(
    bundles: Path, plan: Plan, modality: str | None, classes: int, channel: str | None, channels: int = 1
) -> dict[str, dict[str, Any]]:
    """The configs by name, made of those in the folder ``bundles``.

    A CT is windowed, all else normalized by percentiles. ``classes``, background counted, are those of a network that
    has no weights yet; ``channel`` is taken of images that have several, `all` of them if it says so: ``channels``.
    """
    templates = Path(__file__).with_name("templates")
    parts = read_json(templates / "recipe.json")
    configs = {name: read_json(bundles / TEMPLATES[plan.stages] / "configs" / f"{name}.json") for name in CONFIGS}
    train, evaluate, inference = (configs[name] for name in CONFIGS[:3])
    network = _network("network_def::fine" if plan.stages == 2 else "network_def")
    if plan.stages == 2:
        network |= parts["coarse_network"] | _network("network_def::coarse")
    length = {"epochs": plan.epochs, "spatial_size": list(plan.grid), "val_interval": plan.val_interval}
    _set(train, parts["recipe"] | length | network)
    train["in_channels"], inference["in_channels"] = "$@domain.get('channels', 1)", channels
    _set(inference, {"dataset::data::kind": "3dseg8", "dataset::data::phantoms": False} | network)
    train |= {"channel": channel, "folds": None, "fold": 0}
    train["data"]["options"] = {name: f"@{name}" for name in ("channel", "folds", "fold")}
    evaluate |= {name: parts[name] for name in ("folds", "fold")}
    for config in (evaluate, inference):
        config["mean"] = parts["mean"]
        config["network"] = "$@mean.to(@device)"
    del train["phantoms"], train["train"]["load"]["require_foreground"]
    train["train"]["normalize"] = inference["normalize"] = parts["window" if modality == "CT" else "percentiles"]
    train["train"]["merge_labels"]["label_map"] = "$@data.label_map()"
    inference["num_classes"] = {"_target_": "med3d_ext.data.class_count", "bundle_root": "@bundle_root"} | {
        "ckpt_dir": "@ckpt_dir",
        "default": classes,
    }
    _checkpoint(train)["evaluator"] = None  # the last epoch, in which the learning rate has come down to 0
    configs["folds"] = read_json(templates / "folds.json")
    if plan.stages == 1:
        del evaluate["data::seed"], evaluate["validate::handlers"][1]["group_by"]
        train["train"]["crop"] = {**parts["whole"], "rotate_degrees": 10.0, "scale": [0.85, 1.2]}
        return configs
    for config in (evaluate, inference):
        config["inferers"]["cascade"]["smallest_part"] = SMALLEST_PART
    for config in (train, inference):
        for name in ("coarse_weights", "hu_window", "widths", "negative_scans", "negatives", "cut_share"):
            config.pop(name, None)
    evaluate["num_classes"] = "$len(@domain['classes'])"
    inference["label_names"] = "$@domain['classes']"
    inference["label_values"] = {"_target_": "med3d_ext.data.label_values", "domain": "@domain"}
    del train["train"]["part"], train["train"]["cut"]
    train["train"] |= {"crop": parts["region"], "random_transforms": ["@train::crop"]}
    train["train"]["dataset"]["data"] = "$@data.training"
    train["coarse"] = _coarse(read_json(bundles / COARSE / "configs" / "train.json"), parts, plan)
    train["coarse_stage"] = {
        "_target_": "med3d_ext.weights.CoarseStage",
        "network": "@network_def",
        "trained": "$@coarse::ckpt_dir + '/model.pt'",
        "bundle_root": "@bundle_root",
        "test_items": "$@data.items('test')",
    }
    train["run"].insert(1, "$@coarse::stage.run()")
    parallel = configs["multi_gpu_train"]
    on_gpus = "$@coarse::initial_weights.on(@device, @sync_batchnorm)"
    parallel["coarse::network"] = {**parallel["network"], "module": on_gpus}
    parallel["coarse::validate::sampler"] = {**parallel["validate::sampler"], "dataset": "@coarse::validate::dataset"}
    parallel["coarse::validate::dataloader::sampler"] = "@coarse::validate::sampler"
    return configs


def _network(prefix: str) -> dict[str, Any]:
    """What makes the template's network this recipe's."""
    channels = f"@{prefix}::encoder.channels"
    return {
        f"{prefix}::encoder::in_channels": "@in_channels",
        f"{prefix}::_desc_": "section 3.3: an encoder in a 3D DenseASPP; skip connections to strides 4 and 2 besides",
        f"{prefix}::decoder": {"_target_": "med3d_ext.networks.DenseASPP", "in_channels": f"${channels}[-1]"},
        f"{prefix}::dropout": 0.1,
        f"{prefix}::skips": {
            "_target_": "med3d_ext.networks.SkipConnections",
            "in_channels": f"$@{prefix}::decoder.out_channels",
            "encoder_channels": f"${channels}",
        },
    }


def _coarse(template: dict[str, Any], parts: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The first stage's part of a config: that of ``lits_coarse``, with each reference to its own ids under ``coarse``.

    It decodes no file anew: what both stages read is the same, and only then its classes become one.
    """
    recipe = parts["recipe"]
    _set(template, {key: value for key, value in recipe.items() if key.startswith(("loss", "optimizer", "lr_"))})
    train, validate = template["train"], template["validate"]
    for name in ("load", "normalize", "merge_labels", "cast", "part", "cut", "preprocessing_transforms"):
        del train[name]
    steps = ["@train::crop", "@train::any_target"]
    train |= {"crop": parts["whole"], "any_target": parts["any_target"], "random_transforms": steps}
    train["preprocessing"]["transforms"] = recipe["train::preprocessing::transforms"]
    train["handlers"] = [each for each in train["handlers"] if each["_target_"].rpartition(".")[2] in HANDLERS]
    train["sampler"].pop("samples_per_domain")
    validate["any_target"] = parts["any_target"]
    validate["preprocessing"]["transforms"] = (
        "$@train::preprocessing_transforms + [@validate::resize, @validate::any_target]"
    )
    validate["evaluator"].pop("additional_metrics"), validate.pop("additional_metrics")
    checkpoint = _checkpoint(template)
    checkpoint["evaluator"] = None
    own = {
        "epochs": plan.coarse_epochs,
        "val_interval": max(1, plan.coarse_epochs // 4),
        "spatial_size": list(plan.coarse_grid),
        "output_dir": "",
        "ckpt_dir": "",
        "network_def": "",
        "checkpoint": checkpoint,
    }
    section = own | {name: template[name] for name in TAKEN}
    train["handlers"][train["handlers"].index(checkpoint)] = "@checkpoint"

    def moved(found: re.Match[str]) -> str:
        name = found.group(1)
        if name.startswith(SHARED):
            return found.group()
        return f"@coarse::{name}" if name.partition("::")[0] in section else f"@{ELSEWHERE.get(name, name)}"

    section = _with_references(section, moved) | {
        "output_dir": "$@output_dir + '/coarse'",
        "ckpt_dir": "$@ckpt_dir + '/coarse'",
        "network_def": "$@network_def.coarse",
        "stage": {"_target_": "med3d_ext.engines.FirstStage", "trainer": "@coarse::train::trainer"}
        | {"checkpoint": "@coarse::checkpoint"},
    }
    section["train"]["dataset"]["data"] = "@train::dataset::data"
    section["validate"]["dataset"]["data"] = "@validate::dataset::data"
    return section


def _with_references(node: Any, moved: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _with_references(value, moved) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_references(value, moved) for value in node]
    return REFERENCE.sub(moved, node) if isinstance(node, str) else node


def _place(components: Sequence[Mapping[str, Any]], *names: str) -> int:
    return next(number for number, each in enumerate(components) if each["_target_"].rpartition(".")[2] in names)


def _set(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        set_by_id(config, key.split("::"), copy.deepcopy(value))


def _checkpoint(config: Mapping[str, Any]) -> dict[str, Any]:
    handlers = config["train"]["handlers"]
    return handlers[_place(handlers, "ResumableCheckpoint")]
