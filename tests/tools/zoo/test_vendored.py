"""This package can live inside a bundle: what it imports is installed with a bundle, and it finds its own files."""

from __future__ import annotations

import ast
import configparser
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

import med3d_ext

PACKAGE = Path(med3d_ext.__file__).parent
REPOSITORY = PACKAGE.parent
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
MODULES = {"pytorch-ignite": "ignite", "scikit-image": "skimage"}  # distributions whose module is called otherwise
BROUGHT = {"filelock": "torch", "jinja2": "torch"}  # imported, and required by a requirement


def modules(option):
    """Modules of a list of requirements in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    section = "options" if option == "install_requires" else "options.extras_require"
    names = re.findall(r"^[\w-]+", setup[section][option], re.MULTILINE)
    return {MODULES.get(name, name) for name in names}


@cache
def imports(path, at_top):
    """What a file imports when it is imported itself, or later."""
    return list(_imports(path, at_top))


def _imports(path, at_top):
    tree = ast.parse(path.read_text())
    top = set(ast.walk(ast.Module([node for node in tree.body if not is_definition(node)], [])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and (node in top) == at_top:
            if isinstance(node, ast.ImportFrom):
                yield node.module or ""
            yield from (
                f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                for alias in node.names
            )


def is_definition(node):
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)


def foreign(modules, at_top):
    """First parts of what modules of the package import from elsewhere."""
    found = {name.split(".")[0] for module in modules for name in imports(file_of(module), at_top)}
    return found - set(sys.stdlib_module_names) - {"med3d_ext", ""}


def test_importing_it_needs_only_what_the_base_installation_has():
    every = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    needed = foreign([name.removesuffix(".__init__") for name in every], at_top=True)
    assert {"torch", "monai", "numpy", "ignite"} <= needed
    assert needed - modules("install_requires") - modules("tools") - BROUGHT.keys() == set()  # core: test_house
    assert set(BROUGHT.values()) <= modules("install_requires")


def file_of(module):
    """The file of one of the package's modules, None for what is not a module."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def modules_of(names):
    """The modules that importing ``names`` imports, the packages around them included."""
    todo, found = list(names), set()
    while todo:
        parts = todo.pop().split(".")
        for module in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if module in found or file_of(module) is None:
                continue
            found.add(module)
            todo += [name for name in imports(file_of(module), at_top=True) if name.startswith("med3d_ext")]
    return found


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_metadata_names_what_a_run_imports(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    stated = {MODULES.get(name, name) for name in metadata["required_packages_version"]} | {"torch", "monai", "numpy"}
    configs = "".join(path.read_text() for path in (bundle / "configs").glob("*.json"))
    needed = foreign(modules_of(re.findall(r'"_target_": "(med3d_ext\.[\w.]+)"', configs)), at_top=True)
    assert {"torch", "ignite", "nibabel"} <= needed
    assert needed - stated - BROUGHT.keys() - {"pandas"} == set()  # of the studies, which say so themselves
    assert {"fire", "matplotlib"} <= stated  # of monai.bundle itself, and of a training's curves
