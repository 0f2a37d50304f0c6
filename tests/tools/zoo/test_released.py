"""What the checkout releases could be packed: weights that fit, and no text with a path of somebody's machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import med3d_ext
from med3d_ext.io.files import read_json
from med3d_ext.tools.zoo.pack import check_bundle, check_network, check_paths

PACKAGE = Path(med3d_ext.__file__).parent
BUNDLES = sorted(path.parents[1] for path in PACKAGE.parent.glob("bundles/*/configs/metadata.json"))
RELEASED = [bundle for bundle in BUNDLES if (bundle / "weights" / "model.pt").is_file()]

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


@each_bundle
def test_a_bundle_has_what_is_packed(bundle):
    check_bundle(bundle)


@each_bundle
def test_no_text_of_a_bundle_names_somebodys_machine(bundle):
    for folder in ("configs", "docs", "weights"):
        check_paths(bundle / folder)


def test_no_text_of_the_package_names_somebodys_machine():
    check_paths(PACKAGE)


@pytest.mark.parametrize("bundle", RELEASED, ids=lambda path: path.name)
def test_released_weights_are_the_networks_and_come_with_their_facts(bundle, tmp_path):
    shutil.copytree(bundle / "configs", tmp_path / "configs")
    shutil.copytree(bundle / "weights", tmp_path / "models")
    check_network(tmp_path, "released weights")
    assert read_json(tmp_path / "models" / "facts.json")["domains"]
    card = read_json(tmp_path / "models" / "card.json")
    assert card["cases"]["training"]
    assert card["precision"]
