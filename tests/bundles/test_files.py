"""The files of every bundle and what its metadata promises."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from bundle_files import BUNDLES, REPOSITORY

NEEDED = [
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/multi_gpu_train.json",
    "configs/multi_gpu_evaluate.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "large_files.yml",
]
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def metadata_of(bundle):
    return json.loads((bundle / "configs" / "metadata.json").read_text())


@pytest.fixture(scope="module")
def tested_versions():
    """Package to its versions in constraints.txt, one per range of Pythons."""
    lines = re.findall(r"^([\w.-]+)==([^;\s]+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    return {package: {version for name, version in lines if name == package} for package, _ in lines}


@each_bundle
@pytest.mark.parametrize("name", NEEDED)
def test_a_bundle_has_every_file(bundle, name):
    assert (bundle / name).stat().st_size > 10


@pytest.mark.parametrize(
    "name", [*(f"configs/multi_gpu_{step}.json" for step in ("train", "evaluate")), "configs/logging.conf", "LICENSE"]
)
def test_what_bundles_share_is_the_same_to_the_byte(name):
    assert len({(bundle / name).read_bytes() for bundle in BUNDLES}) == 1


@each_bundle
def test_the_name_survives_downloaders_which_cut_it_at_a_version(bundle):
    assert "_v" not in bundle.name


@each_bundle
def test_the_version_has_a_line_in_the_changelog_and_sorts_as_text(bundle):
    metadata = metadata_of(bundle)
    assert metadata["version"] in metadata["changelog"]
    assert all(re.fullmatch(r"\d\.\d\.\d", version) for version in metadata["changelog"])


@each_bundle
def test_the_versions_are_the_tested_ones(bundle, tested_versions):
    metadata = metadata_of(bundle)
    stated = {package: metadata[key] for key, package in PACKAGES.items()} | metadata["required_packages_version"]
    assert "med3d-ext" not in stated  # not on a package index: a packed bundle carries it
    assert {package for package, version in stated.items() if version not in tested_versions[package]} == set()


@each_bundle
def test_the_first_input_is_the_image_and_the_first_output_the_prediction(bundle):
    metadata = metadata_of(bundle)
    assert metadata["name"]
    assert isinstance(metadata["supported_apps"], dict)
    formats = metadata["network_data_format"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        first = next(iter(formats[side]))
        assert first == name
        channels = formats[side][name]["channel_def"]
        assert list(channels) == [str(number) for number in range(formats[side][name]["num_channels"])]


def test_the_released_weights_together_stay_small():
    released = [path for path in (REPOSITORY / "bundles").glob("*/weights/*") if path.is_file()]
    listed = subprocess.run(["git", "ls-files", "bundles/*/weights/*"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode == 0:  # in a checkout only what is tracked counts
        released = [REPOSITORY / line for line in listed.stdout.splitlines()]
    assert sum(path.stat().st_size for path in released) < 56_000_000


@each_bundle
def test_the_metadata_fits_the_schema(bundle, schema):
    jsonschema = pytest.importorskip("jsonschema")
    metadata = metadata_of(bundle)
    rules = json.loads(schema.read_text())
    jsonschema.validate(metadata, rules)
    del metadata["network_data_format"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, rules)
