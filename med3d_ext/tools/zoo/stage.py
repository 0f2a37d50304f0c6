"""A bundle's folder as it is shared: what belongs to it, this package inside, weights, one form of JSON; checked."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

import med3d_ext
from med3d_ext.errors import InputError
from med3d_ext.io.facts import read_facts, write_facts
from med3d_ext.io.files import read_json, write_json
from med3d_ext.tools.bundle_folder import METADATA, Bundle
from med3d_ext.tools.weights.release import saved
from med3d_ext.tools.zoo.describe import forget_figures
from med3d_ext.weights.files import fit, read_checkpoint, write_state

logger = logging.getLogger("med3d_ext.zoo")

INFERENCE = "configs/inference.json"
NEEDED = ("LICENSE", METADATA, INFERENCE, "configs/train.json", "docs/README.md")
PACKAGE = Path(med3d_ext.__file__).parent
SHARED = ("LICENSE", "configs", "docs", "large_files.yml", "scripts")
"""What is taken of a bundle's folder; runs write anywhere else in it."""

KNOWN = {*SHARED, "weights", "models", "eval", PACKAGE.name, "__pycache__"}
RANDOM = "random"
CARD = "med3d_ext.handlers.card.WeightsCard"
PHANTOMS = 4  # cases: enough for every bundle to have one of each split

# Where people and sites keep their files; in an address on the web a host's name comes before such a path.
PERSONAL_PATH = (
    r"(?<![\w.~-])/(?:home|Users|root|work|workspace|scratch|mnt|media)/[\w.]+|\b[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2}\w+"
)


def stage(bundle: Path, folder: Path, weights: str | None) -> Path:
    """Write a bundle into ``folder`` as it is shared, after checking it.

    The weights become ``models/model.pt`` and ``model.safetensors``. Their tensors are float32 whatever the file holds:
    every tool that reads state dicts expects it, and the archive makes rounded values as small as half precision.

    Args:
        bundle: the bundle's folder.
        folder: an empty folder.
        weights: a file; `random` for a network that was never trained; or None for the bundle's released weights, else
            those of its last training.

    Returns:
        the bundle's folder in ``folder``, of the same name.

    Raises:
        InputError: the bundle is not fit to be shared; the message names the fault.
    """
    check_bundle(bundle)
    staged = folder / bundle.resolve().name
    (staged / "models").mkdir(parents=True)
    for source in (*(bundle / name for name in SHARED), PACKAGE):
        if source.is_dir():
            ignored = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")
            shutil.copytree(source, staged / source.name, ignore=ignored)
        elif source.is_file():
            shutil.copyfile(source, staged / source.name)
    for path in (staged / "configs").glob("*.json"):
        path.write_text(json.dumps(read_json(path), indent=4) + "\n", encoding="utf-8")
    if weights == RANDOM:
        state, said = _random_weights(staged), "random weights"
    else:
        path = _find_weights(bundle, weights)
        state, said = read_checkpoint(path)[0], f"'{path}'"
        card = path.with_name("card.json")
        if not card.is_file():
            raise InputError(f"'{card}' is missing: it belongs to '{path}'; put it there.")
        shutil.copyfile(card, staged / "models" / card.name)
        write_facts(staged / "models", read_facts(path.parent))
    full = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    (staged / "models" / "model.pt").write_bytes(saved(full))
    write_state(full, staged / "models" / "model.safetensors")
    forget_figures(staged, read_json(staged / "models" / "card.json"))
    logger.info(f"weights: {said}")
    left = [path.name for path in bundle.iterdir() if path.name not in KNOWN and path.name[0] != "."]
    if left:
        logger.info(f"left out: {', '.join(sorted(left))}")
    check_paths(staged)
    check_network(staged, said)
    return staged


def _find_weights(bundle: Path, weights: str | None) -> Path:
    if weights is not None:
        if not Path(weights).expanduser().is_file():
            raise InputError(f"--weights must be a file or {RANDOM}, and '{weights}' is not a file.")
        return Path(weights).expanduser()
    for path in (bundle / "weights" / "model.pt", bundle / "models" / "model.pt"):
        if path.is_file():
            return path
    raise InputError(
        f"'{bundle}' has neither weights/model.pt nor models/model.pt; train it, or give --weights FILE or {RANDOM}."
    )


def _random_weights(staged: Path) -> dict[str, Tensor]:
    """What a training on phantoms would start from, with the facts and the card that it would write."""
    from med3d_ext.tools.phantoms.dataset import phantom_dataset

    parser = Bundle(staged).config("train")
    handlers = parser.get("train")["handlers"]
    numbers = [number for number, handler in enumerate(handlers) if handler.get("_target_") == CARD]
    if not numbers:
        raise InputError(f"train.json has no {CARD} among its handlers, so {RANDOM} weights have no card; add it.")
    card = f"train::handlers::{numbers[0]}"
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(0)
        data = phantom_dataset(parser.get("data")["kind"], f"{scratch}/phantoms", PHANTOMS)
        folders = {"output_dir": f"{scratch}/eval", "ckpt_dir": str(staged / "models"), "dataset_dir": str(data)}
        parser.update({**folders, "init": "scratch", f"{card}::evaluator": None})
        writer = parser.get_parsed_content(card)
        writer.write_facts(None)
        writer.write_card(SimpleNamespace(state=SimpleNamespace(epoch=0)))
        state = parser.get_parsed_content("network_def").state_dict()
    path = staged / "models" / "card.json"
    never = {"weights": "random: never trained", "cases": {"training": [], "validation": []}}
    write_json(path, {**read_json(path), **never})
    return state


def check_name(name: str) -> None:
    """Raise InputError where downloaders would not understand a bundle's name."""
    if "_v" in name or not re.fullmatch(r"\w+", name):
        raise InputError(f"a bundle's name must be letters, digits and _ without '_v', got '{name}'; rename it.")


def check_bundle(bundle: Path) -> str:
    """The version of a bundle that has what every bundle has.

    Raises:
        InputError: a file is missing, the name or version is not what downloaders understand, or the changelog lacks
            the version.
    """
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise InputError(f"'{bundle}' lacks {', '.join(missing)}; a bundle that others use has them.")
    metadata = read_json(bundle / METADATA)
    version = str(metadata.get("version"))
    check_name(bundle.resolve().name)
    if not re.fullmatch(r"\d\.\d\.\d", version):  # downloaders sort versions as text
        raise InputError(f"version in '{bundle / METADATA}' must be three single digits like 0.1.0, got '{version}'.")
    if version not in metadata.get("changelog", {}):
        raise InputError(f"changelog in '{bundle / METADATA}' has no line for version {version}; add it.")
    return version


def check_paths(folder: Path) -> None:
    """Raise InputError where a text file of ``folder`` holds a path of somebody's machine."""
    home = f"|{re.escape(str(Path.home()))}" if len(Path.home().parts) > 1 else ""
    personal = re.compile(PERSONAL_PATH + home)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            start = file.read(4096)
            text = "" if b"\0" in start else (start + file.read()).decode("utf-8", "replace")
        if found := personal.search(text):
            name = path.relative_to(folder).as_posix()
            raise InputError(f"'{name}' holds a path of somebody's machine ({found[0]}); take it out.")


def check_network(bundle: Path, weights: str) -> None:
    """Raise InputError unless ``models/model.pt`` is what the network of ``inference.json`` loads, value for value.

    ``weights`` is how the message calls the weights.
    """
    parser = Bundle(bundle).config("inference", device=torch.device("cpu"))
    expected = parser.get_parsed_content("network_def").state_dict()
    state, _ = read_checkpoint(bundle / "models" / "model.pt")
    if faults := fit(state, expected):
        network = dict(parser.get("network_def"))
        values = {name: parser.get(value[1:], value) for name, value in network.items() if str(value).startswith("@")}
        shown = {"network": network.pop("_target_").rpartition(".")[2], **network, **values}
        arguments = ", ".join(f"{name} {value}" for name, value in shown.items() if isinstance(value, str | int))
        raise InputError(
            f"{weights} does not fit the network of {INFERENCE} ({arguments}): it {faults[0]}; give other weights or "
            "set the network's arguments there."
        )
