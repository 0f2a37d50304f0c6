"""Weights files: reading without running their code, checking their hash, writing and downloading whole files only."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.io.facts import facts_path
from med3d_ext.io.files import scratch_folder, write_atomically

STATE_KEYS = ("state_dict", "model", "network", "net", "model_state_dict")
"""Under which of its keys a checkpoint keeps the state dict, first come first taken."""

SERVER = "MONAI_LABEL_APP_DIR"
"""A labelling server sets this variable for itself and for the processes that it starts."""

_PICKLE = "is a plain pickle, which may hold code and is never run; ask its author for a state dict of torch.save"
_FRAMEWORKS = ("argparse", "lightning", "lightning_fabric", "omegaconf", "pathlib", "pytorch_lightning", "types")
"""Packages whose objects Lightning keeps in a checkpoint; an empty dictionary takes their place."""

_FIRST_BYTES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"<": "is a web page, not weights; download it again",
}
"""What is often found where weights should be, by its first bytes."""


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], set[str]]:
    """Read the tensors of a weights file, ``.safetensors`` or any of ``torch.save``; code in it is never run.

    Returns:
        the state dict under the file's own names, and the keys of the checkpoint around it (empty if there is none).

    Raises:
        InputError: no such file, damaged, holding code, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"'{path}' is not a file; give the path of a weights file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state, keys = _unwrap(load_file(path))
        except SafetensorError as error:
            raise InputError(f"'{path}' is damaged or cut short ({error}); fetch it again.") from error
    else:
        state, keys = _unwrap(_read_torch(path))
    if not state:
        raise InputError(f"'{path}' holds no tensors by name; give a file that holds a state dict.")
    return state, keys


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The tensors that hold a value that is not finite, by name."""
    return [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being loaded into a network that has the state dict ``expected``, in words."""
    faults = []
    if missing := sorted(expected.keys() - state.keys()):
        faults.append(f"lacks {len(missing)} of the network's {len(expected)} tensors, {missing[0]} first")
    if more := sorted(state.keys() - expected.keys()):
        faults.append(f"holds {len(more)} tensors that the network lacks, {more[0]} first")
    if shapes := [name for name in expected if name in state and state[name].shape != expected[name].shape]:
        theirs, ours = (tuple(tensors[shapes[0]].shape) for tensors in (state, expected))
        faults.append(f"has {len(shapes)} tensors of other shapes: {shapes[0]} is {theirs}, the network's is {ours}")
    if broken := not_finite(state):
        faults.append(f"holds values that are not finite in {broken[0]}")
    return faults


def digest(path: str | os.PathLike, kind: str = "sha256") -> str:
    """Hexadecimal digest of a file, ``sha256`` or ``sha1``."""
    found = hashlib.new(kind)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def check_sha256(path: str | os.PathLike, sha256: str) -> None:
    """Raise InputError if the file at ``path`` has another hash."""
    if digest(path) != sha256.lower():
        raise InputError(f"'{path}' does not have the sha256 {sha256}; delete it and fetch it again.")


class _Unknown:
    """In the place of a class that is not known: an empty dictionary, which takes any content and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about protocols and archives; what matters is said below
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        except Exception:  # of a damaged file or another kind of archive: reading it says what is wrong
            unknown = []
        names = [name for name in unknown if name.split(".")[0] in _FRAMEWORKS]
        try:
            with torch.serialization.safe_globals([(type("Unknown", (_Unknown,), {}), name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the damage makes of the file: an unpickler raises nearly anything
            raise InputError(f"'{path}' {_what_is_wrong(path, str(error))}.") from error


def _what_is_wrong(path: Path, message: str) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    for first, meaning in _FIRST_BYTES.items():
        if start.startswith(first):
            return meaning
    if "TorchScript" in message:
        return "is a TorchScript archive; give the weights that it was made from"
    if found := re.search(r"GLOBAL (\S+)", message):
        return f"holds code ({found[1]}), which is never run; ask its author for the state dict alone"
    return "is damaged or cut short; fetch it again"


def _unwrap(content: Any) -> tuple[dict[str, Tensor], set[str]]:
    if not isinstance(content, Mapping):
        return {}, set()
    for key in STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])[0], {str(name) for name in content}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, set()


def own_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: a view would drag along the whole storage that it looks into."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def write_state(state: Mapping[str, Tensor], path: str | os.PathLike, overwrite: bool = False) -> None:
    """Write a flat state dict to a ``.pt``, ``.pth`` or ``.safetensors``: all of it, or the file stays as it was.

    Raises:
        InputError: another suffix, or the file exists and ``overwrite`` is False.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(f"'{path}' must end with .pt, .pth or .safetensors.")
    if path.exists() and not overwrite:
        raise InputError(f"'{path}' exists; give another name or --overwrite.")
    with write_atomically(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save(own_copies(state)))
        else:
            torch.save(own_copies(state), file)


def download_weights(url: str, path: str | os.PathLike, sha256: str) -> Path:
    """Fetch a weights file once; a file that is already at ``path`` is checked and used without the network.

    Args:
        url: ``https://...``, or ``hf://owner/repository@commit/file`` with the 40 digits of a commit, since a branch
            moves (needs the package huggingface_hub).
        path: where the file shall be.
        sha256: hash of the file.

    Returns:
        ``path``.

    Raises:
        InputError: the url, the hash or the connection is at fault; nothing is left at ``path`` then.
    """
    path = Path(path)
    if path.exists():
        check_sha256(path, sha256)
        return path
    with scratch_folder(path) as folder:
        part = _fetch(url, folder)
        check_sha256(part, sha256)
        os.replace(part, path)
    return path


def _fetch(url: str, folder: Path) -> Path:
    pinned = re.fullmatch(r"hf://([^/@]+/[^/@]+)@([0-9a-f]{40})/(.+)", url)
    if url.startswith("hf://") and not pinned:
        raise InputError(f"url must be hf://owner/repository@commit/file with the 40 digits of a commit, got '{url}'.")
    try:
        if pinned:
            from huggingface_hub import hf_hub_download

            repository, commit, file = pinned.groups()
            return Path(hf_hub_download(repo_id=repository, filename=file, revision=commit, local_dir=folder / "hub"))
        from monai.apps import download_url

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no hash is given: the caller checks it
            download_url(url, folder / "weights")
    except ImportError as error:
        raise InputError(f"'{url}' needs the package huggingface_hub; `pip install \"med3d-ext[tools]\"`.") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"'{url}' could not be fetched ({error}); fetch it by hand and give its path.") from error
    return folder / "weights"


def weights_to_continue(bundle_root: str | os.PathLike | None) -> Path | None:
    """The weights that a labelling server serves; its training starts from them, with their normalization.

    MONAI Label sends labeled images and leaves every option at its default.

    Returns:
        ``models/model.pt`` of the bundle if its facts are next to it; None without either, and outside a server.
    """
    if SERVER not in os.environ or bundle_root is None:
        return None
    path = Path(bundle_root) / "models" / "model.pt"
    return path if path.is_file() and facts_path(path.parent) else None
