"""The verbs ``weights inspect``, ``convert``, ``join`` and ``release``."""

from __future__ import annotations

import hashlib
import io
import json as jsonlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.io.facts import FACTS, facts_path, read_facts, weights_domains, write_facts
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.weights.coarse import read_coarse
from med3d_ext.weights.files import own_copies, read_checkpoint, write_state
from med3d_ext.weights.loading import (
    SOURCES,
    describe_weights,
    encoder_tensors,
    fit_weights,
    is_counter,
    read_weights,
)

MANTISSA_BITS = 8  # bfloat16 has 7, float16 10; the two that are left out compress away
PRECISION = f"convolutions rounded to {MANTISSA_BITS} bits of mantissa, all else as trained"
BESIDE = (FACTS, "card.json")
"""What is next to a weights file and belongs to it: what inference reads, and the cases that the weights have seen."""

EARLIEST = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier time


def inspect(file: str, *, json: bool = False) -> str:
    """Print depth, block, shortcut, stem, source, tensors and parameters of a weights file.

    Args:
        file: a weights file of MedicalNet, Kinetics, MONAI or this project, `.pth`, `.pt` or `.safetensors`.
        json: print JSON.
    """
    found = describe_weights(*read_weights(file))
    if json:
        return jsonlib.dumps(asdict(found), indent=2)
    rows = {
        "file": file,
        "source": f"{found.source} ({SOURCES[found.source].title})",
        "network_name": found.network_name or "none that is known",
        "block": f"{found.block or 'unknown'}, stages of {', '.join(map(str, found.layers)) or 'no'} blocks",
        "shortcut": found.shortcut,
        "in_channels": found.in_channels or "unknown",
        "tensors": found.tensors,
        "parameters": f"{found.parameters:,}",
        "stored": found.stored,
    }
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def convert(file: str, out: str, *, in_channels: int = 1, overwrite: bool = False) -> str:
    """Write the encoder of any known weights file as a flat state dict, which ResNetEncoder loads directly.

    Args:
        file: a weights file of MedicalNet, Kinetics, MONAI or this project.
        out: the new file, `.pt`, `.pth` or `.safetensors`.
        in_channels: channels of the new stem; if the file has a different number, they are summed and divided evenly.
        overwrite: replace an existing file.
    """
    if in_channels < 1:
        raise InputError(f"--in_channels must be at least 1, got {in_channels}.")
    state, source = read_weights(file)
    description = describe_weights(state, source)
    if description.network_name is None:
        raise InputError(f"'{file}' holds {description}; give a file with one of this project's encoders.")
    arguments: dict[str, Any] = {"name": description.network_name, "in_channels": in_channels}
    arguments["shortcut"] = description.shortcut
    with torch.device("meta"):
        expected = ResNetEncoder(**arguments).state_dict()
    given = encoder_tensors(state, source).tensors
    stored = {name: tensor.to(given[name].dtype) if name in given else tensor for name, tensor in expected.items()}
    tensors, report = fit_weights(stored, state, source, file, minimum_share=1.0)
    # Old files may lack the counters, which a strict load_state_dict wants.
    complete = {name: torch.tensor(0) for name, tensor in expected.items() if is_counter(name, tensor)} | tensors
    write_state({name: complete[name] for name in expected}, out, overwrite)
    values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{report.table()}\n'{Path(out)}' is for ResNetEncoder({values})."


def join(fine: str, coarse: str, out: str, *, overwrite: bool = False) -> str:
    """Put the weights of lits_coarse into those of lits_fine and write both as one file, with its facts and card.

    Tensors that are equal in both networks, as after training the coarse head on the frozen fine encoder, are stored
    once.

    Args:
        fine: `model.pt` of lits_fine, with or without a coarse network.
        coarse: `model.pt` of lits_coarse, or of another lits_fine.
        out: the new file, `.pt`.
        overwrite: replace existing files.
    """
    state, _ = read_checkpoint(fine)
    expected = {name.removeprefix("coarse."): each for name, each in state.items() if name.startswith("coarse.")}
    if not expected or not any(name.startswith("fine.") for name in state):
        raise InputError(f"'{fine}' is not a file of lits_fine; its tensors begin with 'coarse.' and 'fine.'.")
    domains = weights_domains(fine)
    found = read_coarse(coarse, expected, next(iter(domains.values()))["hu_window"])
    target = _target(out, overwrite, BESIDE)
    joined = {**state, **{f"coarse.{name}": tensor for name, tensor in found.tensors.items()}}
    content = saved(joined)
    # The card of the fine network with the cases of the coarse one.
    card_path = Path(fine).with_name("card.json")
    card = read_json(card_path) if card_path.is_file() else {}
    own = {name: cases for name, cases in card.get("cases", {}).items() if not name.startswith("coarse_")}
    write_facts(target.parent, {"domains": {name: {**domain, **found.facts} for name, domain in domains.items()}})
    write_json(target.with_name("card.json"), {**card, "cases": {**own, **found.seen}})
    with write_atomically(target) as file:
        file.write(content)
    twins = [(each, state.get(f"fine.{name}")) for name, each in found.tensors.items()]
    shared = sum(twin is not None and twin.dtype == each.dtype and torch.equal(each, twin) for each, twin in twins)
    return f"'{out}': {len(joined)} tensors, {shared} of them in both networks, {len(content) / 1e6:.1f} MB."


def release(file: str, out: str, *, overwrite: bool = False) -> str:
    """Write weights as small as the released ones, with their facts.json and card.json next to them.

    Args:
        file: a state dict or a checkpoint that contains one; its facts.json and card.json are next to it.
        out: the new file, `.pt`, such as bundles/NAME/weights/model.pt.
        overwrite: replace existing files.
    """
    source = Path(file)
    state, _ = read_checkpoint(source)
    there = {FACTS: facts_path(source.parent) is not None, "card.json": source.with_name("card.json").is_file()}
    beside = [name for name in BESIDE if there[name]]
    target = _target(out, overwrite, beside)
    content = released_bytes(state)
    for name in beside if source.resolve().parent != target.resolve().parent else []:
        if name == FACTS:
            write_facts(target.parent, read_facts(source.parent))
        else:
            write_json(target.with_name(name), {**read_json(source.with_name(name)), "precision": PRECISION})
    with write_atomically(target) as stream:
        stream.write(content)
    lacking = [f"'{source.with_name(name)}' is missing: put it there" for name in BESIDE if name not in beside]
    before, after = source.stat().st_size / 1e6, len(content) / 1e6
    return "\n".join([f"'{target}': {after:.1f} MB, from {before:.1f} MB; {PRECISION}", *lacking])


def _target(out: str, overwrite: bool, beside: Sequence[str]) -> Path:
    """The path of a new weights file, if neither it nor what is written next to it exists or all may be replaced."""
    target = Path(out)
    if target.suffix != ".pt":
        raise InputError(f"out must end with .pt, got '{out}'.")
    for path in (target, *(target.with_name(name) for name in beside)):
        if path.exists() and not overwrite:
            raise InputError(f"'{path}' exists; give another folder or --overwrite.")
    return target


def released_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A file of ``torch.save`` with rounded convolutions, every tensor once, and compressed records.

    ``torch.load(..., weights_only=True)`` reads it as any other, though not with ``mmap=True``. The same values under
    the same names give the same bytes (with one version of torch and zlib).
    """
    plain, stream = io.BytesIO(saved({name: rounded(tensor) for name, tensor in state.items()})), io.BytesIO()
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(stream, "w") as new:
        for record in old.namelist():
            new.writestr(zipfile.ZipInfo(record, EARLIEST), old.read(record), zipfile.ZIP_DEFLATED, compresslevel=9)
    return stream.getvalue()


def rounded(tensor: Tensor) -> Tensor:
    """A convolution's weights in float16, rounded to the nearest with 8 bits of mantissa; all else as it is.

    The relative error is at most 2^-9 (below 2^-16 the absolute one is at most 2^-24). Vectors, BatchNorm's among them,
    are few and keep their precision, and so does a tensor with values beyond float16.
    """
    is_convolution = tensor.is_floating_point() and tensor.dim() > 2
    if not is_convolution or tensor.abs().max() > torch.finfo(torch.float16).max:
        return tensor
    dropped = 23 - MANTISSA_BITS  # of the 23 bits of a float32
    bits = tensor.float().contiguous().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)  # ties go to the even neighbor
    return (((bits + half) >> dropped) << dropped).view(torch.float32).half()


def saved(state: Mapping[str, Tensor]) -> bytes:
    """A file of ``torch.save``, each different tensor stored once: equal ones share it."""
    stored: dict[tuple, Tensor] = {}
    tensors = {}
    for name, value in own_copies(state).items():
        content = hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().data).digest()
        tensors[name] = stored.setdefault((value.dtype, tuple(value.shape), content), value)
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()
