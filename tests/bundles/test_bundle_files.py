"""The files of every bundle and what its metadata promises."""

from __future__ import annotations

import re
import subprocess

import pytest
from bundle_files import BUNDLES, REPOSITORY, each_bundle

from med3d_ext.io.files import read_json

CONFIGS = ("metadata", "train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate")
NEEDED = [*(f"configs/{name}.json" for name in CONFIGS), "configs/logging.conf"]
NEEDED += ["LICENSE", "docs/README.md", "docs/data_license.txt", "large_files.yml"]
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
SHARED = ["configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json", "configs/logging.conf", "LICENSE"]


def metadata_of(bundle):
    return read_json(bundle / "configs" / "metadata.json")


def test_a_bundle_has_every_file_and_shares_some_to_the_byte():
    assert {"lits_coarse", "nodule_classification", "pretrain_3dseg8"} <= {bundle.name for bundle in BUNDLES}
    for name in NEEDED:
        assert all((bundle / name).stat().st_size > 10 for bundle in BUNDLES), name
        assert name not in SHARED or len({(bundle / name).read_bytes() for bundle in BUNDLES}) == 1, name


@each_bundle
def test_name_and_version_survive_the_tools_that_read_them(bundle):
    """Downloaders cut a name at a version, and versions are sorted as text."""
    metadata = metadata_of(bundle)
    assert "_v" not in bundle.name and metadata["name"]
    assert metadata["version"] in metadata["changelog"]
    assert all(re.fullmatch(r"\d\.\d\.\d", version) for version in metadata["changelog"])
    assert isinstance(metadata["supported_apps"], dict)


@each_bundle
def test_the_stated_versions_of_packages_are_the_tested_ones(bundle):
    lines = re.findall(r"^([\w.-]+)==([^;\s]+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    metadata = metadata_of(bundle)
    stated = {package: metadata[key] for key, package in PACKAGES.items()} | metadata["required_packages_version"]
    assert "med3d-ext" not in stated  # not on a package index: a packed bundle carries it
    assert set(stated.items()) - set(lines) == set()


@each_bundle
def test_the_first_input_is_the_image_and_the_first_output_the_prediction(bundle):
    formats = metadata_of(bundle)["network_data_format"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        assert next(iter(formats[side])) == name
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
    metadata, rules = metadata_of(bundle), read_json(schema)
    assert metadata["schema"].endswith(f"/{schema.name}")
    jsonschema.validate(metadata, rules)
    del metadata["network_data_format"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, rules)
