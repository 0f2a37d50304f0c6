"""What MONAI's own tools ask of a bundle: its properties, its network's tensors, its options."""

from __future__ import annotations

import os
import sys

import pytest
from bundle_files import SMALL, config_files, each_bundle, images_of, merged, run_bundle, workflow
from monai.bundle import verify_net_in_out

from med3d_ext.run.one_line import input_error_message
from med3d_ext.run.start import check_overrides

pytestmark = [
    pytest.mark.usefixtures("clean_process"),
    pytest.mark.filterwarnings("ignore:parsing config_file"),
    pytest.mark.filterwarnings("ignore:Attempted to modify"),
]
FORMAT = "_meta_::network_data_format"


@each_bundle
def test_a_training_has_every_property(bundle, on_phantoms):
    training = workflow(bundle, "train", **{**on_phantoms, **SMALL})
    assert training.check_properties() == []
    assert training.max_epochs == training.trainer.state.max_epochs > 0
    assert len(training.train_dataset) > 0


@each_bundle
def test_an_inference_has_every_property(bundle, folders, weights, phantoms):
    images, _ = images_of(phantoms(bundle))
    inference = workflow(bundle, "inference", dataset_dir=str(images), device="cpu", **folders)
    assert inference.check_properties() == []
    assert len(inference.dataset) > 0


@each_bundle
@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_takes_and_gives_what_the_metadata_says(bundle, name, folders, phantoms):
    """That of inference without weights or data."""
    sizes = {**folders, f"{FORMAT}::inputs::image::spatial_shape": [32, 32, 32]}
    sizes["dataset_dir"] = str(phantoms(bundle)) if name == "train" else "/nowhere"
    metadata, config = config_files(bundle, "metadata", name)
    verify_net_in_out("network_def", metadata, config, device="cpu", **sizes)
    with pytest.raises(ValueError, match="output channel number"):
        sizes[f"{FORMAT}::outputs::pred::num_channels"] = 9
        verify_net_in_out("network_def", metadata, config, device="cpu", **sizes)


@each_bundle
@pytest.mark.parametrize("names", [("train",), ("train", "evaluate"), ("inference",)], ids="+".join)
def test_an_option_without_effect_stops_the_command_before_it_writes(bundle, names, folders, tmp_path, monkeypatch):
    files = str(config_files(bundle, *names))
    command = os.path.join("monai", "bundle", "__main__.py")
    monkeypatch.setattr(sys, "argv", [command, "run", "--config_file", files, "--dataset_dirs", "x"])
    with pytest.raises(RuntimeError) as caught:
        run_bundle(bundle, *names, dataset_dirs="x", **folders)
    assert (input_error_message(caught.value) or "").endswith("did you mean 'dataset_dir'?")
    assert os.listdir(tmp_path) == []


@each_bundle
def test_the_promised_options_and_those_of_a_labelling_server_are_accepted(bundle):
    options = ["epochs", "network_name", "init", "num_workers", "dataset_dir", "output_dir", "ckpt_dir", "resume"]
    server = ["bundle_root", "device", "train::dataset::data", "validate::dataset::data", "train::trainer::max_epochs"]
    check_overrides(merged(bundle, "train"), dict.fromkeys(options + server, 1))
    check_overrides(merged(bundle, "inference"), dict.fromkeys(["bundle_root", "device", "dataset_dir", "output_dir"]))
