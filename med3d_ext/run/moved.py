"""What configs of version 0.1 call by names that are no more: one table, for the refusal and for the repair.

``python -m med3d_ext new-bundle --update FOLDER`` rewrites the configs of a user's own bundle by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from med3d_ext.errors import InputError

Component = dict[str, Any]
UPDATE = "python -m med3d_ext new-bundle --update FOLDER"

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
    }.items()
}


def refuse_moved(config: Mapping[str, Any], source: str) -> None:
    """Stop on a config that names what moved.

    Args:
        config: the content of config files.
        source: what the message calls it.

    Raises:
        InputError: it names something of :data:`MOVED`; the message has the new name.
    """
    for old, new in MOVED.items():
        if _names(config, old):
            raise InputError(f"{source} names {old}, which is now {new}; rewrite the bundle's configs by `{UPDATE}`.")


def _names(node: Any, target: str) -> bool:
    if isinstance(node, Mapping):
        return node.get("_target_") == target or any(_names(value, target) for value in node.values())
    return isinstance(node, list) and any(_names(value, target) for value in node)


def renewed(node: Any, name: str = "") -> Any:
    """A config with the new names.

    Args:
        node: the config, or a part of it.
        name: the id of the part.
    """
    if isinstance(node, list):
        return [renewed(value, f"{name}::{number}") for number, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    new = {key: renewed(value, f"{name}::{key}" if name else key) for key, value in node.items()}
    target = new.get("_target_")
    if target in MOVED:
        new["_target_"] = MOVED[target]
    decoder = _DECODERS.get(str(target))
    return new if decoder is None else _composed(new, name, decoder(new))


def _composed(old: Component, name: str, decoder: Component) -> Component:
    """A network of version 0.1 as an encoder, a decoder and a head."""
    of_encoder = {"network_name": "name", "in_channels": "in_channels", "output_stride": "output_stride"}
    of_encoder |= {"shortcut": "shortcut", "checkpointing": "checkpointing"}
    encoder = {new: old[key] for key, new in of_encoder.items() if key in old}
    encoder.setdefault("name", "resnet10")
    kept = {key: value for key, value in old.items() if key not in (*of_encoder, "widths")}
    return {
        **kept,
        "encoder": {"_target_": "med3d_ext.networks.ResNetEncoder", **encoder},
        "decoder": {**decoder, "in_channels": f"$@{name}::encoder.channels[-1]"},
    }


def _lung_decoder(old: Component) -> Component:
    stride = old.get("output_stride", 8)
    groups = f"${stride}.bit_length() - 1" if isinstance(stride, str) else stride.bit_length() - 1
    return {"_target_": "med3d_ext.networks.LungDecoder", "groups": groups}


def _dense_aspp(old: Component) -> Component:
    dropout = old.setdefault("dropout", 0.1)
    widths = {"widths": old["widths"]} if "widths" in old else {}
    return {"_target_": "med3d_ext.networks.DenseASPP", **widths, "dropout": dropout}


_DECODERS: dict[str, Callable[[Component], Component]] = {
    "med3d_ext.networks.LungSegmenter": _lung_decoder,
    "med3d_ext.networks.DenseASPPSegmenter": _dense_aspp,
}
