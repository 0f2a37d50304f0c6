"""This package can live inside a bundle: what it imports is installed with a bundle, and it finds its own files."""

from __future__ import annotations

import ast
import configparser
import json
import re
import sys
from pathlib import Path

import pytest

import med3d_ext

PACKAGE = Path(med3d_ext.__file__).parent
REPOSITORY = PACKAGE.parent
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
MODULES = {"pytorch-ignite": "ignite", "scikit-image": "skimage"}  # distributions whose module is called otherwise
BROUGHT = {"filelock": "torch"}  # imported, and required by a requirement


def modules(option):
    """Modules of a list of requirements in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    section = "options" if option == "install_requires" else "options.extras_require"
    names = re.findall(r"^[\w-]+", setup[section][option], re.MULTILINE)
    return {MODULES.get(name, name) for name in names}


def imports(path, at_top):
    """What a file imports when it is imported itself, or later."""
    tree = ast.parse(path.read_text())
    top = set(ast.walk(ast.Module([node for node in tree.body if not is_definition(node)], [])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and (node in top) == at_top:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name.split(".")[0] for name in names)


def is_definition(node):
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)


def foreign(at_top):
    found = {name for path in PACKAGE.rglob("*.py") for name in imports(path, at_top)}
    return found - set(sys.stdlib_module_names) - {"med3d_ext", ""}


def test_importing_it_needs_only_what_the_base_installation_has():
    assert {"torch", "monai", "numpy", "ignite"} <= foreign(at_top=True)
    assert foreign(at_top=True) - modules("install_requires") - BROUGHT.keys() == set()
    assert set(BROUGHT.values()) <= modules("install_requires")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_metadata_names_what_importing_it_needs(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    stated = {MODULES.get(name, name) for name in metadata["required_packages_version"]} | {"torch", "monai", "numpy"}
    assert foreign(at_top=True) - stated - BROUGHT.keys() == set()
    assert {"fire", "matplotlib"} <= stated  # of monai.bundle itself, and of a training's curves


def test_files_are_found_from_the_package_not_from_the_repository():
    """``Path(__file__).parents[1]`` of a module of the package would be the bundle's folder there."""
    outside = []
    for path in PACKAGE.rglob("*.py"):
        depth = len(path.relative_to(PACKAGE).parts)
        reached = [
            int(number) for number in re.findall(r"__file__\)(?:\.resolve\(\))?\.parents\[(\d+)\]", path.read_text())
        ]
        outside += [path.name for number in reached if number >= depth]
    assert outside == []
    assert (PACKAGE / "data" / "held_out.json").is_file()
