"""The verbs ``weights inspect``, ``weights convert`` and ``weights join``."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import torch

from med3d_ext.errors import InputError
from med3d_ext.io.facts import weights_domains, write_facts
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.tools.weights.release import check_target, saved
from med3d_ext.weights.coarse import read_coarse
from med3d_ext.weights.files import read_checkpoint, write_state
from med3d_ext.weights.loading import check_share, fit_weights, read_weights
from med3d_ext.weights.sources import SOURCES, describe_weights, encoder_tensors, is_counter


def inspect(file: str, *, json: bool = False) -> str:
    """Print depth, block, shortcut, stem, source, tensors and parameters of a weights file.

    Args:
        file: a weights file of MedicalNet, Kinetics, MONAI or this project, `.pth`, `.pt` or `.safetensors`.
        json: print JSON.
    """
    found = describe_weights(*read_weights(file))
    if json:
        return jsonlib.dumps(found.to_dict(), indent=2)
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
    arguments = {"name": description.network_name, "in_channels": in_channels, "shortcut": description.shortcut}
    with torch.device("meta"):
        expected = ResNetEncoder(**arguments).state_dict()  # type: ignore[arg-type]
    found = encoder_tensors(state, source)
    stored = {name: tensor.to(found.tensors[name].dtype) for name, tensor in expected.items() if name in found.tensors}
    tensors, report = fit_weights({**expected, **stored}, found, source, file)
    check_share(report, 1.0)
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
    target = check_target(out, overwrite)
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
