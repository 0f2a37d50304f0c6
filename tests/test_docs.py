"""The API reference against the configs and the packages."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = set(re.findall(r"\.\. auto\w+:: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
ROOMS = ("networks", "losses", "weights", "data", "transforms", "inferers", "metrics", "handlers", "run")


def named(target: str):
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_reference_lists_whatever_a_config_names():
    targets = set()
    for config in ROOT.glob("bundles/*/configs/*.json"):
        targets |= set(re.findall(r'"_target_": "(med3d_ext\.[\w.]+)"', config.read_text(encoding="utf-8")))
    assert len(targets) > 40
    listed = {named(name) for name in PAGE}
    assert {target for target in targets if named(target) not in listed} == set()


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_lists_what_a_package_offers(room):
    offered = {f"med3d_ext.{room}.{name}" for name in importlib.import_module(f"med3d_ext.{room}").__all__}
    assert offered <= PAGE
