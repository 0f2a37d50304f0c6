"""The verb ``weights join``: a fine and a coarse network become one file of the cascade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from med3d_ext.data.fingerprint import weights_domains
from med3d_ext.errors import InputError
from med3d_ext.files import read_json, write_json
from med3d_ext.networks.coarse_stage import read_coarse
from med3d_ext.networks.weight_files import read_checkpoint, write_state


def join(fine: str, coarse: str, out: str, *, half: bool = False, overwrite: bool = False) -> str:
    """Put the weights of lits_coarse into those of lits_fine and write both as one file, with what lies beside it.

    Tensors that are equal in both networks, as after training the coarse head on the frozen fine encoder, are stored
    once.

    Args:
        fine: `model.pt` of lits_fine, with or without a coarse network.
        coarse: `model.pt` of lits_coarse, or of another lits_fine.
        out: the new file, `.pt`, `.pth` or `.safetensors`.
        half: store in half precision; the statistics of BatchNorm stay as they are.
        overwrite: replace an existing file.
    """
    state, _ = read_checkpoint(fine)
    expected = {name.removeprefix("coarse."): each for name, each in state.items() if name.startswith("coarse.")}
    if not expected or not any(name.startswith("fine.") for name in state):
        raise InputError(f"'{fine}' is no file of lits_fine; its tensors begin with 'coarse.' and 'fine.'.")
    domains = weights_domains(fine)
    found = read_coarse(coarse, expected, next(iter(domains.values()))["hu_window"])
    joined = share_equal({name: each for name, each in state.items() if name.startswith("fine.")}, found.tensors)
    joined = {name: joined[name] for name in state}  # in the order of the network
    write_state(half_precision(joined) if half else joined, out, overwrite)
    write_json(
        Path(out).with_name("fingerprint.json"),
        {"domains": {name: {**domain, **found.facts} for name, domain in domains.items()}},
    )
    _write_card(Path(fine).with_name("card.json"), Path(out).with_name("card.json"), found.seen)
    shared = sum(joined[f"coarse.{name}"] is joined.get(f"fine.{name}") for name in found.tensors)
    size = Path(out).stat().st_size / 1e6
    return f"'{out}': {len(joined)} tensors, {shared} of them shared by both networks, {size:.1f} MB."


def share_equal(fine: Mapping[str, Tensor], coarse: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both networks' tensors with their prefixes; a coarse tensor that equals the fine one of its name is that one.

    Args:
        fine: tensors whose names begin with ``fine.``.
        coarse: the coarse network's tensors, without a prefix.
    """
    joined = dict(fine)
    for name, tensor in coarse.items():
        twin = fine.get(f"fine.{name}")
        equal = twin is not None and twin.dtype == tensor.dtype and torch.equal(twin, tensor)
        joined[f"coarse.{name}"] = twin if equal and twin is not None else tensor
    return joined


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating point tensors in half precision, BatchNorm's statistics excepted; names of one tensor stay so."""
    halves: dict[int, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and ".running_" not in name:
            halves.setdefault(id(tensor), tensor.half())
        result[name] = halves.get(id(tensor), tensor)
    return result


def _write_card(source: Path, target: Path, seen: dict[str, list[dict[str, Any]]]) -> None:
    card = read_json(source) if source.is_file() else {}
    own = {name: cases for name, cases in card.get("cases", {}).items() if not name.startswith("coarse_")}
    write_json(target, {**card, "cases": {**own, **seen}})
