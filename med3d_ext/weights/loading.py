"""Put weights into an encoder, all of them or none, and tell what became of each tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from med3d_ext.errors import InputError
from med3d_ext.weights.files import read_checkpoint
from med3d_ext.weights.report import LoadReport
from med3d_ext.weights.sources import EncoderTensors, describe_encoder, encoder_tensors, identify, is_counter

STEM = "conv1.weight"


def read_weights(path: str | os.PathLike, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a weights file of any known source; code in it is never run.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``.
        sha256: hash that the file must have. Defaults to None, any.

    Returns:
        the state dict under the file's own names, and its source, a key of ``SOURCES``.

    Raises:
        InputError: no such file, another hash, damaged, holding code, or without tensors.
    """
    state, keys = read_checkpoint(path, sha256)
    return state, identify(state, keys)


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


def find_encoder(network: nn.Module) -> nn.Module | None:
    """:func:`encoder_of`; None in a network of another kind, which trains from scratch."""
    encoders = {
        name: part
        for name, part in network.named_modules()
        if hasattr(part, "channels") and hasattr(part, "output_stride")
    }
    if len(encoders) > 1:
        encoders = {name: part for name, part in encoders.items() if "fine" in name.split(".")}
    return next(iter(encoders.values())) if len(encoders) == 1 else None


def load_encoder(
    network: nn.Module,
    weights: str | os.PathLike | Mapping[str, Tensor],
    minimum_share: float = 0.95,
    source: str | None = None,
) -> LoadReport:
    """Load weights into the encoder of ``network``. Nothing is written before every check has passed.

    A stem for other channels is adapted, see :func:`adapt_stem`; heads stay as they are.

    Args:
        network: an encoder or a network with one, see :func:`encoder_of`.
        weights: a file (see :func:`read_weights`) or a state dict.
        minimum_share: refuse where the file covers less of the encoder, 0 to 1. Another depth, block or shortcut and
            a tensor of another shape are always refused. Defaults to 0.95.
        source: key of ``SOURCES``. Defaults to None, found from the file.

    Raises:
        InputError: the file does not fit the network; the message names both.
    """
    encoder = encoder_of(network)
    if isinstance(weights, Mapping):
        file, state, found = "the state dict", dict(weights), identify(weights)
    else:
        file, (state, found) = str(weights), read_weights(weights)
    tensors, report = fit_weights(encoder.state_dict(), encoder_tensors(state, source or found), source or found, file)
    check_share(report, minimum_share)
    encoder.load_state_dict(tensors, strict=False)  # strict about names: fit_weights was
    return report


def fit_weights(
    expected: Mapping[str, Tensor], found: EncoderTensors, source: str, file: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Fit a file's encoder to the tensors that a network expects, without touching the network.

    Args:
        expected: the encoder's state dict, on any device (``meta`` too): its names, shapes and data types.
        found: the file's encoder.
        source: key of ``SOURCES``.
        file: the file's name, for messages.

    Returns:
        values for ``expected``, adapted and in its data types, and the report.

    Raises:
        InputError: another architecture, another shape, or values that are not finite.
    """
    weights, network = describe_encoder(found.tensors, source), describe_encoder(expected)
    known = (weights.network_name, weights.shortcut)
    if weights.network_name and known != (network.network_name, network.shortcut):
        raise InputError(
            f"'{file}' holds {weights}, the network is {network}; set network_name to {known[0]} and its shortcut to "
            f"{known[1]}, or give other weights."
        )
    tensors = {name: tensor for name, tensor in found.tensors.items() if name in expected}
    adapted = {name: how for name, how in found.adapted.items() if name in expected}
    if STEM in tensors and _differ_in_channels(tensors[STEM], expected[STEM]):
        adapted[STEM] = f"from {tensors[STEM].shape[1]} to {expected[STEM].shape[1]} input channels"
        tensors[STEM] = adapt_stem(tensors[STEM], expected[STEM].shape[1])
    _check_shapes(tensors, expected, f"'{file}' ({weights})")
    tensors = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    _check_finite(tensors, file)
    moved = {name: found.origin[name] for name in tensors if name not in adapted and found.origin[name] != name}
    return tensors, LoadReport(
        file=file,
        source=source,
        weights=str(weights),
        network=str(network),
        share=_share(tensors, expected),
        matched=[name for name in tensors if name not in adapted and name not in moved],
        renamed={old: new for new, old in moved.items()},
        adapted=adapted,
        missing=[name for name, tensor in expected.items() if name not in tensors and not is_counter(name, tensor)],
        unexpected=[found.origin[name] for name in found.tensors if name not in expected],
        dropped=found.dropped,
    )


def check_share(report: LoadReport, minimum_share: float) -> None:
    """Raise InputError where less than ``minimum_share`` of the encoder was found."""
    if report.share < minimum_share:
        first = f", {report.missing[0]} first" if report.missing else ""
        raise InputError(
            f"'{report.file}' ({report.weights}) covers {report.share:.1%} of the network ({report.network}) and lacks "
            f"{len(report.missing)} tensors{first}; give other weights or lower minimum_share, now {minimum_share:g}."
        )


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """The first convolution for another number of channels.

    The channels are summed and the sum is shared out evenly: ``sum / in_channels`` to each. So RGB becomes the sum,
    which answers to one channel as the old stem did to that channel three times, and one channel becomes N equal parts,
    which answer to N equal channels as the old one did to the one. Equal numbers leave the weights untouched.

    Args:
        weight: 64 x channels x 7 x 7 x 7.
        in_channels: channels wanted.
    """
    if weight.shape[1] == in_channels:
        return weight
    total = weight.float().sum(1, keepdim=True)
    return (total / in_channels).repeat(1, in_channels, 1, 1, 1).to(weight.dtype)


def _differ_in_channels(weight: Tensor, expected: Tensor) -> bool:
    return weight.dim() == 5 and weight.shape[1] != expected.shape[1]


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> None:
    wrong = [name for name, tensor in tensors.items() if tensor.shape != expected[name].shape]
    if wrong:
        theirs, ours = tuple(tensors[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise InputError(
            f"{file} has {len(wrong)} tensors of other shapes than the network: {wrong[0]} is {theirs}, the "
            f"network's is {ours}; give weights of this architecture."
        )


def _check_finite(tensors: Mapping[str, Tensor], file: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"'{file}' holds values that are not finite in {name}; give weights of a run that did not fail."
            )


def _share(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    sizes = {name: tensor.numel() for name, tensor in expected.items() if tensor.is_floating_point()}
    return sum(size for name, size in sizes.items() if name in tensors) / sum(sizes.values())
