"""Packed bundles in an environment that has not this repository: what the model zoo checks, and what a user does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from elsewhere import Elsewhere, packages_of

from med3d_ext.tools.phantoms.dataset import phantom_dataset
from med3d_ext.tools.zoo.pack import pack

REPOSITORY = Path(__file__).parents[3]
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
HERE = Path(__file__).parent

pytestmark = pytest.mark.slow
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The archive of a bundle with random weights. They are large: nothing is kept after the tests."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def make(bundle: Path) -> Path:
        pack(str(bundle), str(folder), weights="random")
        (archive,) = folder.glob(f"{bundle.name}_v*.zip")
        return archive

    yield make
    shutil.rmtree(folder)


@pytest.fixture
def room(tmp_path):
    """A folder for unpacked bundles, gone after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A Python with what a bundle's metadata asks for, and more where it is named."""

    @cache
    def make(bundle: Path, *more: str) -> Elsewhere:
        return Elsewhere(tmp_path_factory.mktemp("elsewhere"), [*packages_of(bundle), *more])

    return make


@pytest.fixture
def server(packed, bundle) -> Iterator[str]:
    """The archive's folder, served as the README of Python says."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=packed(bundle).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        found = re.search(rb"port (\d+)", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{int(found[1])}"
    finally:
        process.terminate()
        process.wait()


def images_of(data: Path) -> Path:
    """The folder to segment: a domain of several, or the data set itself."""
    return next((path for path in sorted(data.iterdir()) if (path / "dataset.json").is_file()), data)


@each_bundle
def test_a_packed_bundle_passes_what_the_model_zoo_checks(bundle, packed, elsewhere, room):
    models = room / "models"
    with zipfile.ZipFile(packed(bundle)) as archive:
        archive.extractall(models)
    (models / "model_info.json").write_text("{}")
    data = Path(os.environ.get("MED3D_DATA", REPOSITORY.parent / "shared" / "data"))
    schema = data / "schema" / "meta_schema_20240725.json"
    if schema.is_file():
        (models / bundle.name / "eval").mkdir()
        shutil.copyfile(schema, models / bundle.name / "eval" / "schema.json")
    said = elsewhere(bundle, "jsonschema").succeed(HERE / "zoo_ci.py", models, bundle.name)
    assert said.count("passed check_") == 4


LOAD = """
import sys
sys.path.insert(1, {folder!r} + "/" + {name!r})  # the bundle's own code
import torch
from monai.bundle import load
network = load({name!r}, bundle_dir={folder!r}, source="github", workflow_type="inference", device="cpu")
state = torch.load({folder!r} + "/" + {name!r} + "/models/model.pt", weights_only=True)
assert network.state_dict().keys() == state.keys()
assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
"""

ENCODER = """
import sys
sys.path.insert(1, {folder!r} + "/" + {name!r})
import torch
from monai.networks.nets.resnet import ResNet, get_inplanes
from med3d_ext.weights.initial import load_encoder
from med3d_ext.networks.resnet import ResNetEncoder
own = ResNetEncoder("resnet10", in_channels=1, output_stride=32)
report = load_encoder(own, {folder!r} + "/" + {name!r} + "/models/model.pt")
assert report.share == 1.0, report.table()
theirs = ResNet("basic", [1, 1, 1, 1], get_inplanes(), n_input_channels=1, conv1_t_stride=2, shortcut_type="B",
                feed_forward=False, bias_downsample=False)
theirs.load_state_dict(own.state_dict())
x = torch.randn(1, 1, 32, 48, 40)
with torch.inference_mode():
    expected = own.eval()(x)[-1].mean((2, 3, 4))
    torch.testing.assert_close(theirs.eval()(x).flatten(1), expected, rtol=0, atol=1e-6)
"""


@each_bundle
def test_a_downloaded_bundle_segments_loads_and_trains_anywhere(bundle, packed, server, elsewhere, room):
    there, archive, name = elsewhere(bundle), packed(bundle), bundle.name
    version = archive.stem.removeprefix(f"{name}_v")
    place = room / "empty"
    where = ("--name", name, "--version", version, "--url", f"{server}/{archive.name}", "--bundle_dir", place)
    there.succeed("-m", "monai.bundle", "download", *where)
    root, kind = place / name, json.loads((bundle / "configs" / "train.json").read_text())["data"]["kind"]
    assert not list(root.rglob("__pycache__"))

    data = phantom_dataset(kind, room / "data", 4)
    run = ("-m", "monai.bundle", "run", "--config_file")
    there.succeed(*run, root / "configs" / "inference.json", "--dataset_dir", images_of(data))
    assert list((root / "eval" / "inference").iterdir())
    assert (root / "med3d_ext" / "__pycache__").is_dir()  # the package that ran is the bundle's

    there.succeed("-c", LOAD.format(folder=str(place), name=name))
    there.succeed("-c", ENCODER.format(folder=str(place), name=name))

    options = ("--dataset_dir", data, "--init", "scratch", "--epochs", 1, "--val_interval", 1)
    there.succeed(*run, root / "configs" / "train.json", *options, "--spatial_size", "[32,32,32]")
    assert json.loads((root / "eval" / "run.json").read_text())["status"] == "completed"
    assert json.loads((root / "models" / "card.json").read_text())["cases"]["training"]
    assert list(there.cwd.iterdir()) == []  # nothing was written but in the bundle


@each_bundle
def test_its_verbs_work_inside_a_bundle(bundle, packed, elsewhere, room):
    there = elsewhere(bundle)
    with zipfile.ZipFile(packed(bundle)) as archive:
        archive.extractall(room)
    said = there.succeed("-m", "med3d_ext", "weights", "inspect", "models/model.pt", cwd=room / bundle.name)
    assert "resnet10" in said
