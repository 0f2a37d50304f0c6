"""What MONAI's own tools ask of a bundle: its properties, its network's tensors, its export, its metadata."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from bundle_files import BUNDLES, SMALL, config_files, images_of, merged, run_bundle, workflow
from monai.bundle import ConfigParser, ckpt_export, scripts, verify_metadata, verify_net_in_out

from med3d_ext.run.one_line import input_error_message
from med3d_ext.run.start import check_overrides

pytestmark = [
    pytest.mark.usefixtures("clean_process"),
    pytest.mark.filterwarnings("ignore:parsing config_file"),
    pytest.mark.filterwarnings("ignore:Attempted to modify"),
]
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)

SHAPE = "_meta_::network_data_format::inputs::image::spatial_shape"


def metadata_file(bundle):
    return str(bundle / "configs" / "metadata.json")


@each_bundle
def test_a_training_has_every_property(bundle, folders, phantoms):
    training = workflow(bundle, "train", dataset_dir=str(phantoms(bundle)), **SMALL, **folders)
    assert training.check_properties() == []
    assert training.max_epochs == training.trainer.state.max_epochs > 0
    assert len(training.train_dataset) > 0


@each_bundle
def test_an_inference_has_every_property(bundle, folders, weights, phantoms):
    images = images_of(phantoms(bundle))
    inference = workflow(bundle, "inference", dataset_dir=str(images), device="cpu", **folders)
    assert inference.check_properties() == []
    assert len(inference.dataset) > 0


@each_bundle
def test_the_network_is_built_without_weights_or_data(bundle, folders):
    network = workflow(bundle, "inference", dataset_dir="/nowhere", **folders).network_def
    assert isinstance(network, torch.nn.Module)


@each_bundle
@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_takes_and_gives_what_the_metadata_says(bundle, name, folders, phantoms):
    sizes = {**folders, SHAPE: [32, 32, 32]}
    if name == "train":
        sizes["dataset_dir"] = str(phantoms(bundle))
    (config,) = config_files(bundle, name)
    verify_net_in_out("network_def", metadata_file(bundle), config, device="cpu", **sizes)
    channels = "_meta_::network_data_format::outputs::pred::num_channels"
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", metadata_file(bundle), config, device="cpu", **sizes, **{channels: 9})


@each_bundle
def test_the_export_is_one_file_that_computes_the_same(bundle, folders, weights, tmp_path):
    (config,) = config_files(bundle, "inference")
    target = str(tmp_path / "model.ts")
    ckpt_export("network_def", target, str(weights), metadata_file(bundle), config, **folders)
    kept = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(target, _extra_files=kept).eval()
    assert json.loads(kept["inference.json"])["network_name"] == "resnet10"
    assert json.loads(kept["metadata.json"]) == ConfigParser.load_config_file(metadata_file(bundle))
    network = workflow(bundle, "inference", **folders).network_def.eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), network(image))


@each_bundle
def test_the_metadata_passes_monais_check(bundle, schema, tmp_path, monkeypatch):
    pytest.importorskip("jsonschema")
    asked = []

    def download(url, filepath, **_):
        asked.append(url.rpartition("/")[2])
        shutil.copyfile(schema, filepath)

    monkeypatch.setattr(scripts, "download_url", download)
    verify_metadata(metadata_file(bundle), tmp_path / "schema.json")
    assert asked == [schema.name]


@each_bundle
@pytest.mark.parametrize("names", [("train",), ("train", "evaluate"), ("inference",)], ids="+".join)
def test_an_option_without_effect_stops_the_command_before_it_writes(bundle, names, folders, tmp_path, monkeypatch):
    files = str(config_files(bundle, *names))
    command = os.path.join("monai", "bundle", "__main__.py")
    monkeypatch.setattr(sys, "argv", [command, "run", "--config_file", files, "--dataset_dirs", "x"])
    with pytest.raises(RuntimeError) as caught:
        run_bundle(bundle, *names, dataset_dirs="x", **folders)
    message = input_error_message(caught.value)
    assert message is not None
    assert message.endswith("did you mean 'dataset_dir'?")
    assert os.listdir(tmp_path) == []


@each_bundle
def test_the_promised_options_and_those_of_a_labelling_server_are_accepted(bundle):
    options = ["epochs", "network_name", "init", "num_workers", "dataset_dir", "output_dir", "ckpt_dir", "resume"]
    server = ["bundle_root", "device", "train::dataset::data", "validate::dataset::data", "train::trainer::max_epochs"]
    check_overrides(merged(bundle, "train"), dict.fromkeys(options + server, 1))
    check_overrides(merged(bundle, "inference"), dict.fromkeys(["bundle_root", "device", "dataset_dir", "output_dir"]))
