"""The configs of a user's own bundle: those of the paper's transfer, with the user's classes in place of the lungs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from med3d_ext.io.files import read_json
from med3d_ext.run.overrides import set_by_id

TEMPLATE = "lung_segmentation"
"""An encoder, pretrained or not, and a decoder back to the grid of the input (section 3.3)."""

LOSS = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "include_background": False}

SET: dict[str, dict[str, Any]] = {
    "train": {
        "num_classes": "$len(@domain['classes'])",
        "spatial_size": "$@domain['spatial_size']",
        "batch_size": 2,
        "data::kind": "3dseg8",
        "data::domains": 1,
        "data::phantoms": False,
        "network_def::_desc_": "section 3.3: three groups of a transposed convolution and a convolution, then 1x1x1",
        "loss::_desc_": "Dice and cross-entropy; the paper's is cross-entropy alone (section 4.1)",
        "loss::loss": LOSS,
        "train::preprocessing_transforms::1::_desc_": "section 3.1; CTs are cut to the range that all CTs hold",
        "train::preprocessing_transforms::1::intensity_range": "$@domain['intensity_range']",
    },
    "evaluate": {},
    "inference": {
        "dataset::data::kind": "3dseg8",
        "dataset::data::phantoms": False,
        "preprocessing::transforms::1::intensity_range": "$@domain['intensity_range']",
    },
    "multi_gpu_train": {},
    "multi_gpu_evaluate": {},
}


def own_configs(template: Path, classes: int, channel: str | None) -> dict[str, dict[str, Any]]:
    """The configs by name.

    Args:
        template: the folder of the bundle ``TEMPLATE``.
        classes: number of classes, background counted, of a network that has no weights yet.
        channel: the channel that is taken of images that have several.
    """
    configs = {name: read_json(template / "configs" / f"{name}.json") for name in SET}
    for name, changes in SET.items():
        for key, value in changes.items():
            set_by_id(configs[name], key.split("::"), value)
    train, evaluate = configs["train"], configs["evaluate"]
    for config in (train, evaluate):
        del config["folds"], config["fold"]
    train["channel"], train["data"]["options"] = channel, {"channel": "@channel"}
    del train["train"]["preprocessing_transforms"][0]["require_foreground"]
    del evaluate["data::seed"], evaluate["validate::handlers"][1]["group_by"]
    configs["inference"]["num_classes"]["default"] = classes
    return configs
