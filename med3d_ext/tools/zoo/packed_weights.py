"""The weights that a bundle is shared with, and what lies beside them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_json
from med3d_ext.tools.weights.release import BESIDE, saved
from med3d_ext.weights.files import read_checkpoint, write_state

RANDOM = "random"
CARD = "med3d_ext.handlers.card.WeightsCard"
PHANTOMS = 4  # cases: enough for every bundle to have one of each split


def place_weights(source: Path, staged: Path, weights: str | None) -> str:
    """Write ``models/model.pt``, ``model.safetensors``, ``fingerprint.json`` and ``card.json`` of a shared bundle.

    The tensors are float32 whatever the file holds: every tool that reads state dicts expects it, and the archive
    makes rounded values as small as half precision.

    Args:
        source: the bundle that is shared.
        staged: its copy, with its configs.
        weights: a file; `random` for a network that was never trained; or None for the bundle's released weights, else
            those of its last training.

    Returns:
        which weights these are, for messages.

    Raises:
        InputError: there are none, they cannot be read, or what inference reads beside them is missing.
    """
    models = staged / "models"
    models.mkdir()
    if weights == RANDOM:
        state, said = _random(staged), "random weights"
    else:
        path = _choose(source, weights)
        state, said = read_checkpoint(path)[0], f"'{path}'"
        for name in BESIDE:
            if not path.with_name(name).is_file():
                raise InputError(f"'{path.with_name(name)}' is missing: it belongs to '{path}'; put it there.")
            shutil.copyfile(path.with_name(name), models / name)
    full = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    (models / "model.pt").write_bytes(saved(full))
    write_state(full, models / "model.safetensors")
    return said


def _choose(source: Path, weights: str | None) -> Path:
    if weights is not None:
        if not Path(weights).expanduser().is_file():
            raise InputError(f"--weights must be a file or {RANDOM}, and '{weights}' is no file.")
        return Path(weights).expanduser()
    for path in (source / "weights" / "model.pt", source / "models" / "model.pt"):
        if path.is_file():
            return path
    raise InputError(
        f"'{source}' has neither weights/model.pt nor models/model.pt; train it, or give --weights FILE or {RANDOM}."
    )


def _random(staged: Path) -> dict[str, torch.Tensor]:
    """What a training on phantoms would start from, with the fingerprint and the card that it would write."""
    from monai.bundle import ConfigParser

    from med3d_ext.tools.phantoms.dataset import phantom_dataset

    parser = ConfigParser()
    parser.read_config(str(staged / "configs" / "train.json"))
    parser.read_meta(str(staged / "configs" / "metadata.json"))
    card = _card_of(parser)
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(0)
        data = phantom_dataset(parser.get("data")["kind"], f"{scratch}/phantoms", PHANTOMS)
        folders = {"bundle_root": str(staged), "output_dir": f"{scratch}/eval", "ckpt_dir": str(staged / "models")}
        parser.update({**folders, "dataset_dir": str(data), "init": "scratch", f"{card}::evaluator": None})
        writer = parser.get_parsed_content(card)
        writer.write_fingerprint(None)
        writer.write_card(SimpleNamespace(state=SimpleNamespace(epoch=0)))
        state = parser.get_parsed_content("network_def").state_dict()
    path = staged / "models" / "card.json"
    never = {"weights": "random: never trained", "cases": {"training": [], "validation": []}}
    write_json(path, {**read_json(path), **never})
    return state


def _card_of(parser: Any) -> str:
    handlers = parser.get("train")["handlers"]
    numbers = [number for number, handler in enumerate(handlers) if handler.get("_target_") == CARD]
    if not numbers:
        raise InputError(f"train.json has no {CARD} among its handlers, so {RANDOM} weights have no card; add it.")
    return f"train::handlers::{numbers[0]}"
