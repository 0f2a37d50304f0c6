"""Whether all that a config names exists and fits, found without building anything."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator, Mapping
from pydoc import locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ReferenceResolver

from med3d_ext.run.overrides import texts, walk

LOCATOR = ComponentLocator()


def components(config: Any) -> dict[str, dict[str, Any]]:
    """What a config builds: every item with a ``_target_``, by id."""
    return {name: value for name, value in walk(config) if isinstance(value, dict) and "_target_" in value}


def unknown_arguments(target: Callable[..., Any], given: Mapping[str, Any], partial: bool = False) -> str | None:
    """Arguments that ``target`` does not take; what it takes as ``**kwargs`` must be known to a class it is made of.

    Args:
        target: class or function.
        given: arguments by name.
        partial: more arguments follow, as for ``"_mode_": "callable"``.
    """
    signature = inspect.signature(target)
    try:
        (signature.bind_partial if partial else signature.bind)(**given)
    except TypeError as error:
        return str(error)
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return None
    makers: list[Any] = [target]
    if inspect.isclass(target):
        makers = [vars(one)["__init__"] for one in inspect.getmro(target)[:-1] if "__init__" in vars(one)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    return ", ".join(sorted(given.keys() - known)) or None


def wrong_components(config: Any) -> dict[str, str]:
    """Id to fault of each component whose ``_target_`` does not exist or does not take the arguments."""
    wrong = {}
    for name, value in components(config).items():
        component = ConfigComponent(value, locator=LOCATOR)
        module = component.resolve_module_name()
        target: Any = locate(module) if isinstance(module, str) else module
        partial = value.get("_mode_") == "callable"
        fault = "no such class" if target is None else _argument_fault(target, component.resolve_args(), partial)
        if fault:
            wrong[name] = f"{value['_target_']}: {fault}"
    return wrong


def _argument_fault(target: Callable[..., Any], given: Mapping[str, Any], partial: bool) -> str | None:
    try:
        return unknown_arguments(target, given, partial)
    except ValueError:  # a class written in C has no signature
        return None


def lost_references(config: Any) -> dict[str, str]:
    """Id to reference of each ``@id`` and ``%id`` that the config does not hold."""
    ids = {name for name, _ in walk(config)}
    lost = {name: ref for name, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
    lost = {name: ref for name, ref in lost.items() if ref not in ids}
    return lost | {name: text for name, text in texts(config) if text.startswith("%") and text[1:] not in ids}


def expressions(config: Any) -> Iterator[tuple[str, str, ast.Module]]:
    """Parsed expressions by id, references in them replaced by the name ``reference``.

    Raises:
        SyntaxError: an expression is no Python.
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
