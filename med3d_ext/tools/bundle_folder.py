"""A bundle: its folder, found by path or name, and its configs with the overrides of a command."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

import med3d_ext
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run.options import on_phantoms
from med3d_ext.run.overrides import check_overrides, set_by_id, split_id
from med3d_ext.weights.initial import find_weights

PACKAGE = Path(med3d_ext.__file__).resolve().parent
METADATA = "configs/metadata.json"
"""What makes a folder a bundle."""
MISSING = object()
COMMANDS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}
"""The config files of each command, without the folder and ``.json``."""


class Bundle:
    """A bundle's folder and its configs, as each command merges them with those overrides that have an effect on it.

    Args:
        folder: the bundle's folder.
        overrides: new values by id, as on a command line.

    Attributes:
        image_sizes: voxels of the images to segment, if the data are such and the check has read them.
    """

    def __init__(self, folder: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.overrides = dict(overrides or {})
        self.image_sizes: list[int] = []
        self.merged = cache(self._merged)
        self._parser = cache(self.config)

    @classmethod
    def find(cls, name_or_path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> Bundle:
        """The bundle that a command means, see :func:`find_bundle`."""
        return cls(find_bundle(name_or_path), overrides)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of ``metadata.json``."""
        return read_json(self.folder / METADATA)

    def files(self, command: str) -> list[str]:
        """The config files of a command, a key of ``COMMANDS``."""
        return [str(self.folder / "configs" / f"{name}.json") for name in COMMANDS[command]]

    def as_written(self, command: str) -> dict[str, Any]:
        """The merged files, without the overrides."""
        for file in self.files(command):
            read_json(file)  # MONAI's own error names no file
        return dict(ConfigParser.load_config_files(self.files(command)))

    def options(self, command: str) -> dict[str, Any]:
        """The overrides that have an effect on a command, and the bundle's folder, which MONAI finds by itself."""
        config = self.as_written(command)
        mine = {name: value for name, value in self.overrides.items() if fault_of(config, name, value) is None}
        return {"bundle_root": str(self.folder), **mine}

    def refuse_unknown(self, command: str) -> None:
        """Stop on an override that has no effect on a command; the InputError names the nearest id."""
        check_overrides(self.as_written(command), self.overrides, Path(self.files(command)[-1]).name)

    def _merged(self, command: str) -> dict[str, Any]:
        config = self.as_written(command)
        for name, value in self.options(command).items():
            set_by_id(config, split_id(name), value)
        return config | on_phantoms(config, self._base(command), self.overrides)

    def _base(self, command: str) -> dict[str, Any]:
        """The file of a command that its overlays are laid over."""
        return dict(ConfigParser.load_config_file(self.files(command)[0]))

    def config(self, command: str, **more: Any) -> ConfigParser:
        """A command's config, nothing built yet; ``more`` overrides win."""
        parser = ConfigParser()
        parser.read_config(self.as_written(command))
        parser.read_meta(dict(self.metadata))
        parser.update({**self.options(command), **more})
        parser.update(on_phantoms(parser.get(), self._base(command), {*self.overrides, *more}))
        return parser

    def value(self, command: str, name: str, default: Any = MISSING, **more: Any) -> Any:
        """An item of a command's config, or ``default``, built; once, unless ``more`` overrides are given."""
        parser = self.config(command, **more) if more else self._parser(command)
        return default if default is not MISSING and name not in parser else parser.get_parsed_content(name)

    def weights(self) -> Path:
        """The weights that inference takes; an InputError if there are none."""
        if given := self.overrides.get("weights"):
            return Path(given)
        with quiet():
            return find_weights(self.folder, self.value("inference", "ckpt_dir"), is_used=False)

    def card(self) -> Path:
        """The card next to them."""
        return self.weights().with_name("card.json")


def fault_of(config: Mapping[str, Any], name: str, value: Any) -> str | None:
    """Why an override has no effect on a config; None if it has one."""
    try:
        check_overrides(config, {name: value}, "train.json and inference.json")
    except InputError as fault:
        return str(fault)
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of MONAI's tools: the caller reports what they find."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def find_bundle(name_or_path: str | os.PathLike) -> Path:
    """The folder of a bundle, as it was found: relative if it was given so.

    Args:
        name_or_path: the path of its folder, or its name: looked for in ``./bundles``, then next to this package,
            which is next to ``bundles`` in a checkout and inside the bundle in a packed one.

    Raises:
        InputError: there is no such bundle; the message names the nearest.
    """
    path = Path(name_or_path).expanduser()
    if (path / METADATA).is_file():
        return path
    beside = PACKAGE.parent
    folders = [*sorted(Path("bundles").glob("*")), *sorted((beside / "bundles").glob("*")), beside]
    known = {folder.name: folder for folder in reversed(folders) if (folder / METADATA).is_file()}
    if path.name == str(name_or_path) and path.name in known:
        return known[path.name]
    if path.is_dir():
        fault = f"'{path}' is not a bundle, it has no {METADATA}"
    else:
        fault = f"There is no bundle '{name_or_path}'"
    nearest = difflib.get_close_matches(path.name, known, n=1, cutoff=0.0)
    if not nearest:
        raise InputError(f"{fault}; give the path of a bundle's folder.")
    folder = known[nearest[0]].parent
    raise InputError(f"{fault}; the nearest is '{nearest[0]}' in '{folder}', or give a folder's path.")
