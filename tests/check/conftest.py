"""What the tests of the checks share: a bundle to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from med3d_ext.tools.bundle_folder import Bundle

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A copy of ``lits_coarse`` without what runs wrote."""
    folder = tmp_path / "lits_coarse"
    left_out = shutil.ignore_patterns("models", "eval", "weights")
    shutil.copytree(REPOSITORY / "bundles" / "lits_coarse", folder, ignore=left_out)
    return folder


@pytest.fixture
def configs(bundle) -> Callable[..., Bundle]:
    """Its configs with overrides by id."""
    return lambda **overrides: Bundle(bundle, overrides)


@pytest.fixture
def edit(bundle) -> Callable[..., None]:
    """Change one of its JSON files: ``edit("train", lambda content: ...)``."""

    def change(name, action):
        path = bundle / "configs" / f"{name}.json"
        content = json.loads(path.read_text())
        action(content)
        path.write_text(json.dumps(content))

    return change
