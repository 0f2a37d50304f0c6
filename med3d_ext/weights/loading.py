"""Whose weights a state dict holds, which encoder they are of, and what becomes of each tensor in a network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from med3d_ext.errors import InputError
from med3d_ext.networks.resnet import ARCHITECTURES, STAGE_CHANNELS, BasicBlock, Bottleneck, PreActivationBottleneck
from med3d_ext.weights.files import fit, read_checkpoint

STEM = "conv1.weight"
BLOCKS = {BasicBlock: "basic", Bottleneck: "bottleneck", PreActivationBottleneck: "pre-activation bottleneck"}


@dataclass(frozen=True)
class Source:
    """How to know one kind of weights and how to read its names. All patterns are regular expressions.

    Attributes:
        title: whose weights they are, for messages.
        keys: keys of the checkpoint around the state dict, one of which is enough to know them.
        names: start of a tensor's name, one of which is enough, too.
        prefixes: what precedes the encoder's names; the first that fits any name is taken off, and tensors without it
            are no part of the encoder.
        drop: starts of names that belong to a head, after the prefix.
    """

    title: str
    keys: tuple[str, ...] = ()
    names: str = "(?!)"
    prefixes: tuple[str, ...] = ("",)
    drop: str = "(?!)"


# In the order in which they are tried. The Kinetics files of 2018 have `module.` before each name, those of 2020 not.
SOURCES = {
    "kinetics": Source("Kinetics (3D-ResNets-PyTorch)", ("arch",), r"module\.fc\.", (r"module\.", ""), r"fc\."),
    "medicalnet": Source(
        "MedicalNet", ("ecpoch", "batch_id"), r"module\.(conv1|conv_seg)\.", (r"module\.", ""), r"conv_seg\."
    ),
    "network": Source(
        "a whole network",
        names=r"(.+\.)?encoder\.conv1\.",
        prefixes=(r"(.+\.)?fine\.encoder\.", r"(.+\.)?coarse\.encoder\.", r"(.+\.)?encoder\."),
    ),
    "monai": Source("MONAI ResNet", names=r"fc\.|.+\.downsample\.0\.bias", drop=r"fc\."),
    "encoder": Source("an encoder"),
}


@dataclass(frozen=True)
class LoadReport:
    """The fate of every tensor of a file and of an encoder. Names are those of the encoder unless said otherwise.

    Attributes:
        file: where the weights came from; ``source`` is the key of ``SOURCES``.
        weights: what the file holds, in words; ``network`` is the encoder.
        share: loaded values among the encoder's parameters and BatchNorm statistics, 0 to 1.
        matched: loaded under the same name, unchanged.
        renamed: loaded unchanged under another name: {the file's name: the encoder's}.
        adapted: loaded after a change: {name: what was changed}.
        missing: not in the file, left as they were.
        unexpected: in the file, unknown to the encoder; the file's names.
        dropped: in the file, known to be no part of an encoder (heads, branches); the file's names.
    """

    file: str
    source: str
    weights: str
    network: str
    share: float
    matched: list[str]
    renamed: dict[str, str]
    adapted: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    dropped: list[str]

    def table(self) -> str:
        """A small text table: counts, with an example of each."""
        lines = [f"{self.file}: {self.weights} (source: {self.source})", f"{self.share:.1%} of the encoder loaded"]
        for kind in ("matched", "renamed", "adapted", "missing", "unexpected", "dropped"):
            names = getattr(self, kind)
            if isinstance(names, dict):
                names = [f"{name}: {what}" if " " in what else f"{name} -> {what}" for name, what in names.items()]
            example = names[0] + (", ..." if len(names) > 1 else "") if names else ""
            lines.append(f"  {kind:<10} {len(names):>5}  {example}".rstrip())
        return "\n".join(lines)

    def to_json(self) -> str:
        """All names, as JSON text."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Description:
    """What a state dict holds: ``network_name`` is None if the tensors fit no architecture, ``block`` if they fit none,
    ``in_channels`` without a stem; ``parameters`` counts no buffers; ``stored`` is such as `float16, float32`.
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


@dataclass
class EncoderTensors:
    """The encoder's part of a file under the encoder's names: values, the file's names, and what was done to it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def identify(state: Mapping[str, Tensor], keys: set[str] | None = None) -> str:
    """The name in ``SOURCES`` of a state dict, from its tensors' names and the keys of the checkpoint around it."""
    for name, source in SOURCES.items():
        if not (keys or set()).isdisjoint(source.keys) or any(re.match(source.names, tensor) for tensor in state):
            return name
    return "encoder"


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], str]:
    """The state dict of a weights file under the file's own names, and its source, a key of ``SOURCES``."""
    state, keys = read_checkpoint(path)
    return state, identify(state, keys)


def encoder_tensors(state: Mapping[str, Tensor], source: str) -> EncoderTensors:
    """Take the encoder out of a state dict by the rules of its source, a key of ``SOURCES``.

    A bias before a BatchNorm, which MONAI's shortcut has, is the same as a smaller running mean: it is taken off
    there. In training it has no effect at all, since the batch's mean takes it away.
    """
    rules = SOURCES[source]
    prefix = next((p for p in rules.prefixes if any(re.match(p, name) for name in state)), "")
    found = EncoderTensors()
    for name, tensor in state.items():
        start = re.match(prefix, name)
        new = name[start.end() :] if start else ""
        if not start or re.match(rules.drop, new):
            found.dropped.append(name)
        else:
            found.tensors[new], found.origin[new] = tensor, name
    for name in [name for name in found.tensors if name.endswith("downsample.0.bias")]:
        mean = name.replace("0.bias", "1.running_mean")
        if mean in found.tensors and found.tensors[mean].shape == found.tensors[name].shape:
            found.tensors[mean] = found.tensors[mean] - found.tensors.pop(name)
            found.adapted[mean] = "the bias before it was subtracted"
            del found.origin[name]
    return found


def describe_weights(state: Mapping[str, Tensor], source: str | None = None) -> Description:
    """Find depth, block, shortcut and stem of an encoder from its tensors; ``source`` is found from their names."""
    source = source or identify(state)
    return _describe(encoder_tensors(state, source).tensors, source)


def _describe(tensors: Mapping[str, Tensor], source: str) -> Description:
    stages = [name.split(".")[0] for name in tensors if re.fullmatch(r"layer\d\.\d+\.conv1\.weight", name)]
    layers = tuple(stages.count(stage) for stage in sorted(set(stages)))
    # The block from the last stage's first: the last BatchNorm counts the channels after a convolution or before it.
    shapes = {name.removeprefix("layer4.0."): tensor.shape for name, tensor in tensors.items() if "layer4.0." in name}
    block: type[torch.nn.Module] | None = None
    if shapes.keys() >= {"conv3.weight", "bn3.weight", "conv1.weight", "bn1.weight"}:
        block = Bottleneck if shapes["bn3.weight"][0] == shapes["conv3.weight"][0] else PreActivationBottleneck
    elif shapes.keys() >= {"conv1.weight", "bn1.weight"} and shapes["bn1.weight"][0] == shapes["conv1.weight"][0]:
        block = BasicBlock
    stem, last = tensors.get(STEM), shapes.get("conv1.weight", ())
    is_ours = stem is not None and stem.dim() == len(last) == 5 and last[0] == STAGE_CHANNELS[-1]
    fitting = [name for name, row in ARCHITECTURES.items() if is_ours and (row.block, row.layers) == (block, layers)]
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return Description(
        network_name=fitting[0] if fitting else None,
        block=BLOCKS[block] if block else None,
        layers=layers,
        shortcut="B" if any("downsample" in name for name in tensors) else "A",
        in_channels=stem.shape[1] if stem is not None and stem.dim() > 1 else None,
        source=source,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for name, tensor in floats.items() if ".running_" not in name),
        stored=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in floats.values()})),
    )


def is_counter(name: str, tensor: Tensor) -> bool:
    """BatchNorm's count of batches: nothing reads it at a fixed momentum, and old files lack it."""
    return name.endswith("num_batches_tracked") and tensor.dtype == torch.int64


def find_encoder(network: nn.Module) -> nn.Module | None:
    """:func:`encoder_of`; None in a network of another kind, which trains from scratch."""
    parts = dict(network.named_modules())
    names = [name for name, part in parts.items() if hasattr(part, "channels") and hasattr(part, "output_stride")]
    if len(names) > 1:
        names = [name for name in names if "fine" in name.split(".")]
    return parts[names[0]] if len(names) == 1 else None


def encoder_of(network: nn.Module) -> Any:
    """The encoder in ``network``, or the network itself if it is one; of a cascade that of the fine network.

    An encoder is a module with ``channels`` and ``output_stride``, as :class:`~med3d_ext.networks.ResNetEncoder`.

    Raises:
        InputError: there is none, or more than one and no fine network.
    """
    if (encoder := find_encoder(network)) is None:
        raise InputError(
            f"network_def, a {type(network).__name__}, must hold one encoder (a module with channels and "
            "output_stride), or one in 'fine', to load weights or to freeze it; --init scratch and "
            "heads_first_epochs 0 need none."
        )
    return encoder


def load_encoder(
    network: nn.Module, weights: str | os.PathLike | Mapping[str, Tensor], minimum_share: float = 0.95
) -> LoadReport:
    """Load weights into the encoder of ``network``. Nothing is written before every check has passed.

    A stem for other channels is adapted, see :func:`adapt_stem`; heads stay as they are.

    Args:
        network: an encoder or a network with one, see :func:`encoder_of`.
        weights: a file (see :func:`read_weights`) or a state dict.
        minimum_share: refuse if the file covers less of the encoder, 0 to 1. Another depth, block or shortcut and
            a tensor of another shape are always refused. Defaults to 0.95.

    Raises:
        InputError: the file does not fit the network; the message names both.
    """
    encoder = encoder_of(network)
    if isinstance(weights, Mapping):
        file, state, source = "the state dict", weights, identify(weights)
    else:
        file, (state, source) = str(weights), read_weights(weights)
    tensors, report = fit_weights(encoder.state_dict(), state, source, file, minimum_share)
    encoder.load_state_dict(tensors, strict=False)  # strict about names: fit_weights was
    return report


def fit_weights(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, file: str, minimum_share: float = 0.95
) -> tuple[dict[str, Tensor], LoadReport]:
    """Values for an encoder's state dict ``expected``, adapted and in its data types, and the report.

    ``expected`` may be on the ``meta`` device; ``state`` has the names of ``file``.

    Raises:
        InputError: another architecture, another shape, values that are not finite, or too small a share.
    """
    found = encoder_tensors(state, source)
    weights, network = _describe(found.tensors, source), _describe(expected, "encoder")
    known = (weights.network_name, weights.shortcut)
    if weights.network_name and known != (network.network_name, network.shortcut):
        raise InputError(
            f"'{file}' holds {weights}, the network is {network}; set network_name to {known[0]} and its shortcut to "
            f"{known[1]}, or give other weights."
        )
    tensors = {name: tensor for name, tensor in found.tensors.items() if name in expected}
    adapted = {name: how for name, how in found.adapted.items() if name in expected}
    if STEM in tensors and tensors[STEM].dim() == 5 and tensors[STEM].shape[1] != expected[STEM].shape[1]:
        adapted[STEM] = f"from {tensors[STEM].shape[1]} to {expected[STEM].shape[1]} input channels"
        tensors[STEM] = adapt_stem(tensors[STEM], expected[STEM].shape[1])
    tensors = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    if faults := fit(tensors, {name: expected[name] for name in tensors}):
        raise InputError(f"'{file}' ({weights}) {faults[0]}; give other weights.")
    moved = {name: found.origin[name] for name in tensors if name not in adapted and found.origin[name] != name}
    sizes = {name: tensor.numel() for name, tensor in expected.items() if tensor.is_floating_point()}
    report = LoadReport(
        file=file,
        source=source,
        weights=str(weights),
        network=str(network),
        share=sum(size for name, size in sizes.items() if name in tensors) / sum(sizes.values()),
        matched=[name for name in tensors if name not in adapted and name not in moved],
        renamed={old: new for new, old in moved.items()},
        adapted=adapted,
        missing=[name for name, tensor in expected.items() if name not in tensors and not is_counter(name, tensor)],
        unexpected=[found.origin[name] for name in found.tensors if name not in expected],
        dropped=found.dropped,
    )
    if report.share < minimum_share:
        first = f", {report.missing[0]} first" if report.missing else ""
        raise InputError(
            f"'{file}' ({weights}) covers {report.share:.1%} of the network ({network}) and lacks "
            f"{len(report.missing)} tensors{first}; give other weights or lower minimum_share, now {minimum_share:g}."
        )
    return tensors, report


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """The first convolution for another number of channels: their sum, shared out evenly.

    So RGB becomes the sum, which answers to one channel as the old stem did to that channel three times, and one
    channel becomes N equal parts.

    Args:
        weight: 64 x channels x 7 x 7 x 7.
        in_channels: channels wanted.
    """
    if weight.shape[1] == in_channels:
        return weight
    total = weight.float().sum(1, keepdim=True)
    return (total / in_channels).repeat(1, in_channels, 1, 1, 1).to(weight.dtype)
