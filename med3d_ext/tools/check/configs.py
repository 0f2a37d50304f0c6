"""A bundle's configs with the overrides of a command: files, options, ids, classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import BundleProperty, BundlePropertyConfig

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run import options
from med3d_ext.run.moved import refuse_moved
from med3d_ext.run.overrides import check_overrides, set_by_id, split_id, walk
from med3d_ext.tools.check.binding import components, expressions, lost_references, unknown_names, wrong_components
from med3d_ext.tools.check.findings import Finding, error, ok, warning

COMMANDS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}
NEEDED = ("configs/metadata.json", "configs/train.json", "configs/evaluate.json", "configs/inference.json")
WANTED = ("LICENSE", "configs/multi_gpu_train.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt")


class BundleConfigs:
    """The configs of a bundle as each command merges them, with those overrides that have an effect on it.

    Args:
        folder: the bundle.
        overrides: new values by id, as on a command line.

    Attributes:
        image_sizes: voxels of the images to segment, where the data are such and the check has read them.
    """

    def __init__(self, folder: Path, overrides: Mapping[str, Any]) -> None:
        self.folder = folder
        self.overrides = dict(overrides)
        self.image_sizes: list[int] = []
        self.merged = cache(self._merged)
        self.parser = cache(self._parser)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of ``metadata.json``."""
        return read_json(self.folder / "configs" / "metadata.json")

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
        mine = {name: value for name, value in self.overrides.items() if _fault(config, name, value) is None}
        return {"bundle_root": str(self.folder), **mine}

    def _merged(self, command: str) -> dict[str, Any]:
        config = self.as_written(command)
        for name, value in self.options(command).items():
            set_by_id(config, split_id(name), value)
        return config

    def workflow(self, command: str) -> ConfigWorkflow:
        """What ``monai.bundle run`` makes of the command, nothing built yet."""
        kind = "infer" if command == "inference" else "train"
        with quiet():
            return ConfigWorkflow(self.files(command), logging_file=False, workflow_type=kind, **self.options(command))

    def _parser(self, command: str) -> ConfigParser:
        parser = self.workflow(command).parser
        parser.parse(reset=True)
        return parser

    def value(self, command: str, name: str) -> Any:
        """An item of a command's config, built."""
        return self.parser(command).get_parsed_content(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of MONAI's tools: what they find is told by the check itself."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def check_files(configs: BundleConfigs) -> Iterator[Finding]:
    """What a bundle consists of, and its version."""
    missing = [name for name in NEEDED if not (configs.folder / name).is_file()]
    for name in missing:
        yield error("files", f"'{configs.folder / name}' is missing; restore it or take another bundle as a model.")
    for name in set(NEEDED) - set(missing):
        read_json(configs.folder / name)  # refuses what is not a JSON object
    for name in WANTED:
        if not (configs.folder / name).is_file():
            yield warning("files", f"'{configs.folder / name}' is missing; it is needed to share the bundle.")
    version = configs.metadata.get("version")
    if version not in configs.metadata.get("changelog", {}):
        yield warning("files", f"version {version} has no line under 'changelog' of metadata.json; add one.")
    if not missing:
        yield ok("files", f"'{configs.folder}', version {version}")


def check_options(configs: BundleConfigs) -> Iterator[Finding]:
    """Overrides that match nothing: MONAI takes them without a word."""
    accepted = []
    written = {command: configs.as_written(command) for command in COMMANDS}
    for name, value in configs.overrides.items():
        faults = {command: _fault(config, name, value) for command, config in written.items()}
        if all(faults.values()):
            yield error("options", str(faults["train"]))
        elif range_fault := _range_fault(name, value):
            yield error("options", range_fault)
        else:
            accepted.append(f"{name} ({', '.join(command for command, fault in faults.items() if not fault)})")
    if accepted:
        yield ok("options", "with effect: " + ", ".join(accepted))


def check_ids(configs: BundleConfigs, command: str) -> Iterator[Finding]:
    """References, and the ids that MONAI's tools look for."""
    config = configs.merged(command)
    lost = lost_references(config)
    for name, reference in lost.items():
        yield error("ids", f"{command}: '{name}' refers to '{reference}', which is not in the config; correct it.")
    properties = _missing_properties(configs.workflow(command))
    for name in properties:
        yield error("ids", f"{command}: MONAI's property '{name}' is missing or has another id; name it as MONAI does.")
    if not lost and not properties:
        yield ok("ids", f"{command}: {sum(1 for _ in walk(config))} ids, every reference and property found")


def _missing_properties(workflow: ConfigWorkflow) -> list[str]:
    """What ``check_properties`` finds, without building the properties, as it would."""
    missing = []
    for name, facts in (workflow.properties or {}).items():
        key, referring = facts[BundlePropertyConfig.ID], facts.get(BundlePropertyConfig.REF_ID)
        used = workflow.parser.get(referring) if referring else None
        renamed = isinstance(used, str) and used.startswith("@") and used != f"@{key}"
        if renamed or (facts[BundleProperty.REQUIRED] and key not in workflow.parser):
            missing.append(name)
    return missing


def check_classes(configs: BundleConfigs, command: str) -> Iterator[Finding]:
    """Every ``_target_`` with its arguments, every expression with its names."""
    config = configs.merged(command)
    try:
        refuse_moved(config, command)
    except InputError as moved:
        yield error("classes", str(moved))
        return
    wrong = wrong_components(config)
    for name, fault in wrong.items():
        yield error("classes", f"{command}: '{name}' is {fault}; correct the name or the arguments.")
    try:
        count = len(list(expressions(config)))
    except SyntaxError as fault:
        yield error("classes", f"{command}: the expression {fault.text!r} is not Python ({fault.msg}); correct it.")
        return
    names = unknown_names(config)
    for name, unknown in names.items():
        yield error("classes", f"{command}: '{name}' uses {', '.join(sorted(unknown))}; add it to 'imports'.")
    if not wrong and not names:
        yield ok("classes", f"{command}: {len(components(config))} components and {count} expressions fit")


def _range_fault(name: str, value: Any) -> str | None:
    """Why no run can use a value."""
    try:
        options.check_options({name: value} | dict(options.as_meant({name: value})))
    except InputError as fault:
        return str(fault)
    return None


def _fault(config: Mapping[str, Any], name: str, value: Any) -> str | None:
    """Why an override has no effect on a config; None where it has one."""
    try:
        check_overrides(config, {name: value}, "train.json and inference.json")
    except InputError as fault:
        return str(fault)
    return None
