"""Whose weights a state dict holds, which encoder they are of, and what each of their tensors is called here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.networks.blocks import BasicBlock, Bottleneck, PreActivationBottleneck
from med3d_ext.networks.resnet import ARCHITECTURES, STAGE_CHANNELS


@dataclass(frozen=True)
class Source:
    """How to know one kind of weights and how to read its names. All patterns are regular expressions.

    Attributes:
        title: whose weights they are, for messages.
        keys: keys of the checkpoint around the state dict, one of which is enough to know them.
        names: start of a tensor's name, one of which is enough, too.
        prefixes: what stands before the encoder's names; the first that fits any name is taken off, and tensors
            without it are no part of the encoder.
        drop: starts of names that belong to a head, after the prefix.
    """

    title: str
    keys: tuple[str, ...] = ()
    names: str = "(?!)"
    prefixes: tuple[str, ...] = ("",)
    drop: tuple[str, ...] = ()


# In the order in which they are tried. The Kinetics files of 2018 have `module.` before each name, those of 2020 not.
SOURCES = {
    "kinetics": Source("Kinetics (3D-ResNets-PyTorch)", ("arch",), r"module\.fc\.", (r"module\.", ""), (r"fc\.",)),
    "medicalnet": Source(
        "MedicalNet", ("ecpoch", "batch_id"), r"module\.(conv1|conv_seg)\.", (r"module\.", ""), (r"conv_seg\.",)
    ),
    "network": Source(
        "a whole network",
        names=r"(.+\.)?encoder\.conv1\.",
        prefixes=(r"(.+\.)?fine\.encoder\.", r"(.+\.)?coarse\.encoder\.", r"(.+\.)?encoder\."),
    ),
    "monai": Source("MONAI ResNet", names=r"fc\.|.+\.downsample\.0\.bias", drop=(r"fc\.",)),
    "encoder": Source("an encoder"),
}

BLOCKS = {BasicBlock: "basic", Bottleneck: "bottleneck", PreActivationBottleneck: "pre-activation bottleneck"}


def identify(state: Mapping[str, Tensor], keys: set[str] | None = None) -> str:
    """The name in ``SOURCES`` of a state dict, from its tensors' names and the keys of the checkpoint around it."""
    for name, source in SOURCES.items():
        if not (keys or set()).isdisjoint(source.keys) or any(re.match(source.names, tensor) for tensor in state):
            return name
    return "encoder"


@dataclass
class EncoderTensors:
    """The encoder's part of a file under the encoder's names: values, the file's names, and what was done to it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def encoder_tensors(state: Mapping[str, Tensor], source: str | None = None) -> EncoderTensors:
    """Take the encoder out of a state dict by the rules of its source.

    A bias before a BatchNorm, which MONAI's shortcut has, is the same as a smaller running mean: it is taken off
    there. In training it has no effect at all, since the batch's mean takes it away.

    Args:
        state: tensors under the file's names.
        source: key of ``SOURCES``. Defaults to None, found from the names.

    Raises:
        InputError: ``source`` is none of the keys.
    """
    rules = SOURCES.get(source or identify(state))
    if rules is None:
        raise InputError(f"source must be one of {', '.join(SOURCES)}, got {source!r}.")
    prefix = next((p for p in rules.prefixes if any(re.match(p, name) for name in state)), "")
    found = EncoderTensors()
    for name, tensor in state.items():
        start = re.match(prefix, name)
        new = name[start.end() :] if start else ""
        if not start or any(re.match(head, new) for head in rules.drop):
            found.dropped.append(name)
            continue
        found.tensors[new], found.origin[new] = tensor, name
    _fold_biases(found)
    return found


def _fold_biases(found: EncoderTensors) -> None:
    for name in [name for name in found.tensors if name.endswith("downsample.0.bias")]:
        mean = name.replace("0.bias", "1.running_mean")
        if mean in found.tensors and found.tensors[mean].shape == found.tensors[name].shape:
            bias = found.tensors.pop(name)
            del found.origin[name]
            found.tensors[mean] = found.tensors[mean] - bias
            found.adapted[mean] = "the bias before it was subtracted"


@dataclass(frozen=True)
class Description:
    """What a state dict holds.

    Attributes:
        network_name: key of ``ARCHITECTURES``, None where the tensors fit none of them.
        block: `basic`, `bottleneck`, `pre-activation bottleneck`, or None.
        layers: blocks of each stage.
        shortcut: `B` where a shortcut has parameters, else `A`.
        in_channels: channels of the input, None without a stem.
        source: key of ``SOURCES``.
        tensors: number of the encoder's tensors.
        parameters: number of the encoder's trainable values, thus without BatchNorm's buffers.
        stored: data types of its values, such as `float16, float32`.
    """

    network_name: str | None
    block: str | None
    layers: tuple[int, ...]
    shortcut: str
    in_channels: int | None
    source: str
    tensors: int
    parameters: int
    stored: str

    def __str__(self) -> str:
        name = self.network_name or f"no known encoder (stages of {', '.join(map(str, self.layers)) or 'no'} blocks)"
        return f"{name} with shortcut {self.shortcut} and {self.in_channels or 'unknown'} input channel(s)"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_weights(state: Mapping[str, Tensor], source: str | None = None) -> Description:
    """Find depth, block, shortcut and stem from the tensors.

    Args:
        state: tensors under the file's names.
        source: key of ``SOURCES``. Defaults to None, found from the names.
    """
    source = source or identify(state)
    return describe_encoder(encoder_tensors(state, source).tensors, source)


def describe_encoder(tensors: Mapping[str, Tensor], source: str = "encoder") -> Description:
    """The same for tensors that already have the encoder's names."""
    block, layers, stem = _block(tensors), _layers(tensors), tensors.get("conv1.weight")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return Description(
        network_name=_network_name(tensors, block, layers),
        block=block,
        layers=layers,
        shortcut="B" if any("downsample" in name for name in tensors) else "A",
        in_channels=stem.shape[1] if stem is not None and stem.dim() > 1 else None,
        source=source,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for name, tensor in floats.items() if ".running_" not in name),
        stored=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in floats.values()})),
    )


def _layers(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks = {
        found.groups() for found in (re.match(r"layer(\d)\.(\d+)\.conv1\.weight$", name) for name in tensors) if found
    }
    return tuple(sum(stage == number for number, _ in blocks) for stage in sorted({number for number, _ in blocks}))


def _block(tensors: Mapping[str, Tensor]) -> str | None:
    """From the last stage's first block: the last BatchNorm counts the channels after a convolution or before it."""
    shapes = {name.removeprefix("layer4.0."): tensor.shape for name, tensor in tensors.items() if "layer4.0." in name}
    if "conv1.weight" not in shapes or "bn1.weight" not in shapes:
        return None
    if "conv3.weight" in shapes and "bn3.weight" in shapes:
        return BLOCKS[Bottleneck if shapes["bn3.weight"][0] == shapes["conv3.weight"][0] else PreActivationBottleneck]
    return BLOCKS[BasicBlock] if shapes["bn1.weight"][0] == shapes["conv1.weight"][0] else None


def _network_name(tensors: Mapping[str, Tensor], block: str | None, layers: tuple[int, ...]) -> str | None:
    stem, last = tensors.get("conv1.weight"), tensors.get("layer4.0.conv1.weight")
    if stem is None or last is None or (stem.dim(), last.dim(), last.shape[0]) != (5, 5, STAGE_CHANNELS[-1]):
        return None
    fitting = [name for name, row in ARCHITECTURES.items() if (BLOCKS[row.block], row.layers) == (block, layers)]
    return fitting[0] if fitting else None


def is_counter(name: str, tensor: Tensor) -> bool:
    """BatchNorm's count of batches: nothing reads it at a fixed momentum, and old files lack it."""
    return name.endswith("num_batches_tracked") and tensor.dtype == torch.int64
