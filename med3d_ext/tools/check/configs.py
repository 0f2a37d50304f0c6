"""What is wrong with a bundle's configs: files, options, ids, classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run import options
from med3d_ext.run.moved import refuse_moved
from med3d_ext.run.overrides import walk
from med3d_ext.tools.bundle_folder import COMMANDS, Bundle, fault_of
from med3d_ext.tools.check.binding import components, expressions, lost_references, unknown_names, wrong_components
from med3d_ext.tools.check.findings import Finding, error, ok, warning

NEEDED = ("configs/metadata.json", "configs/train.json", "configs/evaluate.json", "configs/inference.json")
WANTED = ("LICENSE", "configs/multi_gpu_train.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt")


def check_files(bundle: Bundle) -> Iterator[Finding]:
    """What a bundle consists of, and its version."""
    missing = [name for name in NEEDED if not (bundle.folder / name).is_file()]
    for name in missing:
        yield error("files", f"'{bundle.folder / name}' is missing; restore it or take another bundle as a model.")
    for name in set(NEEDED) - set(missing):
        read_json(bundle.folder / name)  # refuses what is not a JSON object
    for name in WANTED:
        if not (bundle.folder / name).is_file():
            yield warning("files", f"'{bundle.folder / name}' is missing; it is needed to share the bundle.")
    version = bundle.metadata.get("version")
    if version not in bundle.metadata.get("changelog", {}):
        yield warning("files", f"version {version} has no line under 'changelog' of metadata.json; add one.")
    if not missing:
        yield ok("files", f"'{bundle.folder}', version {version}")


def check_options(bundle: Bundle) -> Iterator[Finding]:
    """Overrides that match nothing: MONAI takes them without a word."""
    accepted = []
    written = {command: bundle.as_written(command) for command in COMMANDS}
    for name, value in bundle.overrides.items():
        faults = {command: fault_of(config, name, value) for command, config in written.items()}
        if all(faults.values()):
            yield error("options", str(faults["train"]))
        elif range_fault := _range_fault(name, value):
            yield error("options", range_fault)
        else:
            accepted.append(f"{name} ({', '.join(command for command, fault in faults.items() if not fault)})")
    if accepted:
        yield ok("options", "with effect: " + ", ".join(accepted))


def check_ids(bundle: Bundle, command: str) -> Iterator[Finding]:
    """References, and the ids that MONAI's tools look for."""
    config = bundle.merged(command)
    lost = lost_references(config)
    for name, reference in lost.items():
        yield error("ids", f"{command}: '{name}' refers to '{reference}', which is not in the config; correct it.")
    properties = _missing_properties(
        bundle.config(command), InferProperties if command == "inference" else TrainProperties
    )
    for name in properties:
        yield error("ids", f"{command}: MONAI's property '{name}' is missing or has another id; name it as MONAI does.")
    if not lost and not properties:
        yield ok("ids", f"{command}: {sum(1 for _ in walk(config))} ids, every reference and property found")


def _missing_properties(parser: ConfigParser, properties: Mapping[str, Any]) -> list[str]:
    """What ``check_properties`` finds, without building the properties, as it would."""
    missing = []
    for name, facts in properties.items():
        key, referring = facts[BundlePropertyConfig.ID], facts.get(BundlePropertyConfig.REF_ID)
        used = parser.get(referring) if referring else None
        renamed = isinstance(used, str) and used.startswith("@") and used != f"@{key}"
        if renamed or (facts[BundleProperty.REQUIRED] and key not in parser):
            missing.append(name)
    return missing


def check_classes(bundle: Bundle, command: str) -> Iterator[Finding]:
    """Every ``_target_`` with its arguments, every expression with its names."""
    config = bundle.merged(command)
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
