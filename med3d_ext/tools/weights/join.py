"""The verb ``weights join``: a fine and a coarse network become one file of the cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from med3d_ext.data.fingerprint import weights_domains
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.tools.weights.release import BESIDE, saved
from med3d_ext.weights.coarse import read_coarse
from med3d_ext.weights.files import read_checkpoint


def join(fine: str, coarse: str, out: str, *, overwrite: bool = False) -> str:
    """Put the weights of lits_coarse into those of lits_fine and write both as one file, with what lies beside it.

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
        raise InputError(f"'{fine}' is no file of lits_fine; its tensors begin with 'coarse.' and 'fine.'.")
    domains = weights_domains(fine)
    found = read_coarse(coarse, expected, next(iter(domains.values()))["hu_window"])
    target = Path(out)
    if target.suffix != ".pt":
        raise InputError(f"out must end with .pt, got '{out}'.")
    for path in (target, *(target.with_name(name) for name in BESIDE)):
        if path.exists() and not overwrite:
            raise InputError(f"'{path}' exists; give another folder or --overwrite.")
    joined = {**state, **{f"coarse.{name}": tensor for name, tensor in found.tensors.items()}}
    content = saved(joined)
    card = _card(Path(fine).with_name("card.json"), found.seen)
    write_json(
        target.with_name("fingerprint.json"),
        {"domains": {name: {**domain, **found.facts} for name, domain in domains.items()}},
    )
    write_json(target.with_name("card.json"), card)
    with write_atomically(target) as file:
        file.write(content)
    twins = [(each, state.get(f"fine.{name}")) for name, each in found.tensors.items()]
    shared = sum(twin is not None and twin.dtype == each.dtype and torch.equal(each, twin) for each, twin in twins)
    return f"'{out}': {len(joined)} tensors, {shared} of them in both networks, {len(content) / 1e6:.1f} MB."


def _card(path: Path, seen: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The fine network's card with the coarse network's cases."""
    card = read_json(path) if path.is_file() else {}
    own = {name: cases for name, cases in card.get("cases", {}).items() if not name.startswith("coarse_")}
    return {**card, "cases": {**own, **seen}}
