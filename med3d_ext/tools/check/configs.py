"""What is wrong with a bundle's configs: files, options, ids, classes, versions; found without building anything."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pydoc import locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig
from monai.utils.module import version_geq

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run import options
from med3d_ext.run.moved import refuse_moved
from med3d_ext.run.overrides import texts, walk
from med3d_ext.tools.bundle_folder import COMMANDS, Bundle, fault_of
from med3d_ext.tools.check import Finding, error, judge, ok, warning

NEEDED = ("configs/metadata.json", "configs/train.json", "configs/evaluate.json", "configs/inference.json")
WANTED = ("LICENSE", "configs/multi_gpu_train.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt")
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
FROM = {"torch": "2.8", "monai": "1.6.1", "numpy": "1.26"}
BELOW = {"monai": "1.7"}
LOCATOR = ComponentLocator()


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
    number = bundle.metadata.get("version")
    if number not in bundle.metadata.get("changelog", {}):
        yield warning("files", f"version {number} has no line under 'changelog' of metadata.json; add one.")
    if not missing:
        yield ok("files", f"'{bundle.folder}', version {number}")


def check_options(bundle: Bundle) -> Iterator[Finding]:
    """Overrides that match nothing, which MONAI takes without a word, and values that no run can use."""
    accepted = []
    written = {command: bundle.as_written(command) for command in COMMANDS}
    for name, value in bundle.overrides.items():
        faults = {command: fault_of(config, name, value) for command, config in written.items()}
        if all(faults.values()):
            yield error("options", str(faults["train"]))
            continue
        try:
            options.check_options({name: value} | dict(options.as_meant({name: value})))
        except InputError as fault:
            yield error("options", str(fault))
            continue
        accepted.append(f"{name} ({', '.join(command for command, fault in faults.items() if not fault)})")
    if accepted:
        yield ok("options", "with effect: " + ", ".join(accepted))


def check_ids(bundle: Bundle, command: str) -> Iterator[Finding]:
    """References, and the ids that MONAI's tools look for: what its ``check_properties`` finds by building them."""
    config, parser = bundle.merged(command), bundle.config(command)
    faults = [
        f"{command}: '{name}' refers to '{reference}', which is not in the config; correct it."
        for name, reference in lost_references(config).items()
    ]
    properties: Mapping[str, Any] = InferProperties if command == "inference" else TrainProperties
    for name, facts in properties.items():
        key, referring = facts[BundlePropertyConfig.ID], facts.get(BundlePropertyConfig.REF_ID)
        used = parser.get(referring) if referring else None
        is_renamed = isinstance(used, str) and used.startswith("@") and used != f"@{key}"
        if is_renamed or (facts[BundleProperty.REQUIRED] and key not in parser):
            faults.append(f"{command}: MONAI's property '{name}' is missing or has another id; name it as MONAI does.")
    count = sum(1 for _ in walk(config))
    yield from judge("ids", faults, f"{command}: {count} ids, every reference and property found")


def check_classes(bundle: Bundle, command: str) -> Iterator[Finding]:
    """Every ``_target_`` with its arguments, every expression with its names."""
    config = bundle.merged(command)
    refuse_moved(config, command)
    wrong = wrong_components(config).items()
    faults = [f"{command}: '{name}' is {fault}; correct the name or the arguments." for name, fault in wrong]
    count = 0
    try:
        count = len(list(expressions(config)))
        for name, unknown in unknown_names(config).items():
            faults.append(f"{command}: '{name}' uses {', '.join(sorted(unknown))}; add it to 'imports'.")
    except SyntaxError as fault:
        faults.append(f"{command}: the expression {fault.text!r} is not Python ({fault.msg}); correct it.")
    yield from judge("classes", faults, f"{command}: {len(components(config))} components and {count} expressions fit")


def check_versions(bundle: Bundle) -> Iterator[Finding]:
    """Packages that are missing or outside the range, and those older than the tested ones."""
    tested = {package: bundle.metadata[key] for key, package in PACKAGES.items() if key in bundle.metadata}
    tested |= bundle.metadata.get("required_packages_version", {})
    fitting = []
    for package, wanted in tested.items():
        try:
            have = version(package)
        except PackageNotFoundError:
            yield error("versions", f"{package} is not installed; `pip install {package}=={wanted}`.")
            continue
        oldest, limit = FROM.get(package), BELOW.get(package)
        if oldest and not version_geq(have, oldest) or limit and version_geq(have, limit):
            rule = f"from {oldest}" + (f" and below {limit}" if limit else "")
            yield error("versions", f"{package} must be {rule}, got {have}; `pip install {package}=={wanted}`.")
        elif not version_geq(have, wanted):
            yield warning("versions", f"{package} {have} is older than {wanted}, with which the bundle was tested.")
        else:
            fitting.append(f"{package} {have}")
    if fitting:
        yield ok("versions", ", ".join(fitting))


def components(config: Any) -> dict[str, dict[str, Any]]:
    """What a config builds: every item with a ``_target_``, by id."""
    return {name: value for name, value in walk(config) if isinstance(value, dict) and "_target_" in value}


def wrong_components(config: Any) -> dict[str, str]:
    """Id to fault of each component whose ``_target_`` does not exist or does not take the arguments."""
    wrong = {}
    for name, value in components(config).items():
        component = ConfigComponent(value, locator=LOCATOR)
        module = component.resolve_module_name()
        target: Any = locate(module) if isinstance(module, str) else module
        fault = "no such class" if target is None else None
        if target is not None:
            fault = unknown_arguments(target, component.resolve_args(), value.get("_mode_") == "callable")
        if fault:
            wrong[name] = f"{value['_target_']}: {fault}"
    return wrong


def unknown_arguments(target: Callable[..., Any], given: Mapping[str, Any], partial: bool = False) -> str | None:
    """Arguments that ``target`` does not take; what it takes as ``**kwargs`` must be known to a class it is made of.

    Args:
        target: class or function; one that is written in C and has no signature takes all.
        given: arguments by name.
        partial: more arguments follow, as for ``"_mode_": "callable"``.
    """
    try:
        signature = inspect.signature(target)
        (signature.bind_partial if partial else signature.bind)(**given)
    except TypeError as error:
        return str(error)
    except ValueError:
        return None
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return None
    makers: list[Any] = [target]
    if inspect.isclass(target):
        makers = [vars(one)["__init__"] for one in inspect.getmro(target)[:-1] if "__init__" in vars(one)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    return ", ".join(sorted(given.keys() - known)) or None


def lost_references(config: Any) -> dict[str, str]:
    """Id to reference of each ``@id`` and ``%id`` that the config does not hold."""
    ids = {name for name, _ in walk(config)}
    lost = {name: ref for name, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
    lost = {name: ref for name, ref in lost.items() if ref not in ids}
    return lost | {name: text for name, text in texts(config) if text.startswith("%") and text[1:] not in ids}


def expressions(config: Any) -> Iterator[tuple[str, str, ast.Module]]:
    """Parsed expressions by id, references in them replaced by the name ``reference``.

    Raises:
        SyntaxError: an expression is not Python.
    """
    for name, text in texts(config):
        if text.startswith("$"):
            yield name, text, ast.parse(ReferenceResolver.id_matcher.sub("reference", text[1:]))


def unknown_names(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Id to the names that an expression uses and ``imports`` does not bring."""
    imported = {text.split()[-1] for text in config.get("imports", [])} | {"reference", *vars(builtins)}
    lost = {}
    for name, _, tree in expressions(config):
        names = {node for node in ast.walk(tree) if isinstance(node, ast.Name)}
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        unknown = {node.id for node in names} - bound - imported
        if unknown:
            lost[name] = unknown
    return lost
