"""What is wrong with a bundle is found before it is shared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.weights.files import read_checkpoint

METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
NEEDED = ("LICENSE", METADATA, INFERENCE, "configs/train.json", "docs/README.md")

# Where people and sites keep their files; in an address on the web a host's name comes before such a path.
PERSONAL_PATH = re.compile(
    r"(?<![\w.~-])/(?:home|Users|root|work|workspace|scratch|mnt|media)/[\w.]+|\b[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2}\w+"
)


def check_name(name: str) -> None:
    """Raise InputError where downloaders would not understand a bundle's name."""
    if "_v" in name or not re.fullmatch(r"\w+", name):
        raise InputError(f"a bundle's name must be letters, digits and _ without '_v', got '{name}'; rename it.")


def check_version(bundle: Path) -> str:
    """The bundle's version.

    Raises:
        InputError: its name or version is not what downloaders understand, or the changelog lacks the version.
    """
    metadata = read_json(bundle / METADATA)
    version = str(metadata.get("version"))
    check_name(bundle.resolve().name)
    if not re.fullmatch(r"\d\.\d\.\d", version):  # downloaders sort versions as text
        raise InputError(f"version in '{bundle / METADATA}' must be three single digits like 0.1.0, got '{version}'.")
    if version not in metadata.get("changelog", {}):
        raise InputError(f"changelog in '{bundle / METADATA}' has no line for version {version}; add it.")
    return version


def check_files(bundle: Path) -> None:
    """Raise InputError where the bundle lacks a file that every bundle has."""
    missing = [name for name in NEEDED if not (bundle / name).is_file()]
    if missing:
        raise InputError(f"'{bundle}' lacks {', '.join(missing)}; a bundle that others use has them.")


def check_paths(folder: Path) -> None:
    """Raise InputError where a text file of ``folder`` holds a path of somebody's machine."""
    personal = [PERSONAL_PATH]
    if len(Path.home().parts) > 1:
        personal.append(re.compile(re.escape(str(Path.home()))))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = next((match for pattern in personal if (match := pattern.search(_text(path)))), None)
        if found:
            name = path.relative_to(folder).as_posix()
            raise InputError(f"'{name}' holds a path of somebody's machine ({found[0]}); take it out.")


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        if b"\0" in file.read(4096):
            return ""  # no text
        file.seek(0)
        return file.read().decode("utf-8", "replace")


def check_network(bundle: Path, weights: str) -> None:
    """Raise InputError unless ``models/model.pt`` is what the network of ``inference.json`` loads, value for value.

    Args:
        bundle: a bundle's folder with its weights and what lies beside them.
        weights: how messages call the weights.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / INFERENCE))
    parser.read_meta(str(bundle / METADATA))
    parser.update({"bundle_root": str(bundle), "device": torch.device("cpu")})
    expected: Mapping[str, Tensor] = parser.get_parsed_content("network_def").state_dict()
    state, _ = read_checkpoint(bundle / "models" / "model.pt")
    fault = _misfit(state, expected)
    if fault:
        raise InputError(
            f"{weights} does not fit the network of {INFERENCE} ({_arguments(parser)}): {fault}; give other weights "
            "or set the network's arguments there."
        )


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    for fault, names in (
        ("lacks", [name for name in expected if name not in state]),
        ("has beyond it", [name for name in state if name not in expected]),
    ):
        if names:
            return f"it {fault} {len(names)} tensors, {names[0]} first"
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            return f"{name} is {tuple(state[name].shape)}, the network's is {tuple(tensor.shape)}"
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            return f"{name} holds values that are not finite"
    return None


def _arguments(parser: Any) -> str:
    network = dict(parser.get("network_def"))
    values = {name: parser.get(value[1:], value) for name, value in network.items() if str(value).startswith("@")}
    shown = {"network": network.pop("_target_").rpartition(".")[2], **network, **values}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if isinstance(value, str | int))
