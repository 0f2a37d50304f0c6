"""What configs of version 0.1 call by former names: one table, for the refusal and for the repair.

``python -m med3d_ext new-bundle --update FOLDER`` rewrites the configs of a user's own bundle by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from med3d_ext.errors import InputError
from med3d_ext.run.overrides import walk

Component = dict[str, Any]

MOVED = {
    f"med3d_ext.{old}": f"med3d_ext.{new}"
    for old, new in {
        "bundle.StartRun": "run.StartRun",
        "networks.pretrained.InitialWeights": "weights.InitialWeights",
        "networks.pretrained.find_weights": "weights.find_weights",
        "networks.coarse_stage.CoarseStage": "weights.CoarseStage",
        "networks.coarse_stage.CoarseRestart": "weights.CoarseRestart",
        "networks.DenseASPPSegmenter": "networks.SegmentationNetwork",
        "networks.LungSegmenter": "networks.SegmentationNetwork",
        "prediction.LabelMapWriter": "io.label_maps.LabelMapWriter",
        "prediction.label_map_name": "io.label_maps.label_map_name",
        "studies.Study": "tools.experiments.Study",
        "handlers.snapshots.ValidationSnapshots": "handlers.overlay.ValidationSnapshots",
    }.items()
}
# Arguments of the former networks that are now their encoder's
_OF_ENCODER = {key: key for key in ("network_name", "in_channels", "output_stride", "shortcut", "checkpointing")}
_OF_ENCODER["network_name"] = "name"


def refuse_moved(config: Mapping[str, Any], source: str) -> None:
    """Stop on a config that names something of :data:`MOVED`; the message calls the config ``source``."""
    for name, old in walk(dict(config)):
        if name.rpartition("::")[2] == "_target_" and isinstance(old, str) and old in MOVED:
            update = "python -m med3d_ext new-bundle --update FOLDER"
            raise InputError(
                f"{source} names {old}, which is now {MOVED[old]}; rewrite the bundle's configs by `{update}`."
            )


def renewed(node: Any, name: str = "") -> Any:
    """A config, or the part of it with the id ``name``, with the new names."""
    if isinstance(node, list):
        return [renewed(value, f"{name}::{number}") for number, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    new = {key: renewed(value, f"{name}::{key}" if name else key) for key, value in node.items()}
    target = str(new.get("_target_"))
    if target not in MOVED:
        return new
    if target.endswith("Segmenter"):
        new = _composed(new, name, target.endswith("LungSegmenter"))
    return {**new, "_target_": MOVED[target]}


def _composed(old: Component, name: str, is_lung: bool) -> Component:
    """A network of version 0.1 as an encoder, a decoder and a head."""
    encoder = {new: old[key] for key, new in _OF_ENCODER.items() if key in old}
    encoder.setdefault("name", "resnet10")
    if is_lung:
        stride = old.get("output_stride", 8)
        groups = f"${stride}.bit_length() - 1" if isinstance(stride, str) else stride.bit_length() - 1
        decoder: Component = {"_target_": "med3d_ext.networks.LungDecoder", "groups": groups}
    else:
        dropout = old.setdefault("dropout", 0.1)
        widths = {"widths": old["widths"]} if "widths" in old else {}
        decoder = {"_target_": "med3d_ext.networks.DenseASPP", **widths, "dropout": dropout}
    return {
        **{key: value for key, value in old.items() if key not in (*_OF_ENCODER, "widths")},
        "encoder": {"_target_": "med3d_ext.networks.ResNetEncoder", **encoder},
        "decoder": {**decoder, "in_channels": f"$@{name}::encoder.channels[-1]"},
    }
