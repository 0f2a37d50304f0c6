"""The network, its weights, and what a training starts from."""

from __future__ import annotations

import json

import pytest
import torch

from med3d_ext.networks import Segmenter
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.tools.check.inputs import (
    build_network,
    check_initial_weights,
    check_shapes,
    check_weights,
)
from med3d_ext.tools.check.verb import gather
from med3d_ext.weights.files import fit


@pytest.fixture
def weights(bundle):
    """Weights as a training leaves them."""
    folder = bundle / "models"
    folder.mkdir()
    torch.save(Segmenter("resnet10", 1, 2, 8).state_dict(), folder / "model.pt")
    (folder / "facts.json").write_text(json.dumps({"domains": {"Task03_Liver": {}}}))
    (folder / "card.json").write_text("{}")
    return folder / "model.pt"


def test_the_network_is_built_without_memory(configs):
    network = build_network(configs(network_name="resnet200"))
    assert all(parameter.is_meta for parameter in network.parameters())


def test_a_network_that_fits_its_metadata_is_told_with_its_size(configs):
    (finding,) = check_shapes(configs())
    assert (finding.level, finding.text) == ("ok", "1 channel in, 2 out, 14.4 million parameters")


def test_other_channels_than_the_metadatas_are_an_error(configs):
    (finding,) = check_shapes(configs(**{"network_def::num_classes": 5}))
    assert finding.level == "error"
    assert "output channel number" in finding.text


def test_a_depth_that_does_not_exist_is_one_line(configs):
    (finding,) = gather("network", check_shapes, configs(network_name="resnet11"))
    assert finding.level == "error"
    assert "resnet10" in finding.text


def test_no_weights_yet_is_a_warning(configs):
    (finding,) = check_weights(configs())
    assert (finding.level, finding.text.startswith("no inference yet")) == ("warning", True)


def test_weights_that_fit_are_told_with_their_data(configs, weights):
    (finding,) = check_weights(configs())
    assert finding.level == "ok"
    assert finding.text.endswith("fits the network; trained on Task03_Liver")


def test_weights_of_another_network_are_an_error(configs, weights):
    found = list(check_weights(configs(network_name="resnet18")))
    assert {finding.level for finding in found} == {"error"}
    assert "lacks" in found[0].text


def test_weights_without_facts_are_an_error_and_without_card_a_warning(configs, weights):
    weights.with_name("card.json").unlink()
    assert [finding.level for finding in check_weights(configs())] == ["warning", "ok"]
    weights.with_name("facts.json").unlink()
    assert gather("weights", check_weights, configs())[-1].level == "error"


def test_a_file_that_a_labelling_server_would_take_instead_is_told(configs, weights):
    weights.with_name("last.pt").write_bytes(b"")
    assert "would serve 'last.pt'" in next(iter(check_weights(configs()))).text


def test_what_keeps_a_state_from_being_loaded():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert fit({"a": torch.zeros(2).half(), "b": torch.zeros(3)}, expected) == []
    found = fit({"a": torch.tensor([1.0]), "c": torch.tensor([torch.nan])}, expected)
    assert [fault.split()[0] for fault in found] == ["lacks", "holds", "has", "holds"]
    assert "a is (1,), the network's is (2,)" in found[2]


def test_initial_weights_are_found_and_measured(configs, tmp_path):
    (scratch,) = check_initial_weights(configs())
    assert scratch.text == "from scratch"
    path = tmp_path / "encoder.pt"
    torch.save(ResNetEncoder("resnet10").state_dict(), path)
    (finding,) = check_initial_weights(configs(init=str(path)))
    assert (finding.level, "covers 100.0% of the encoder" in finding.text) == ("ok", True)


@pytest.mark.parametrize("init", ["/no/file.pt", "kinetics"])
def test_initial_weights_that_are_not_there_are_an_error(configs, init):
    (finding,) = gather("init", check_initial_weights, configs(init=init))
    assert finding.level == "error"


def test_initial_weights_of_another_depth_are_an_error(configs, tmp_path):
    torch.save(ResNetEncoder("resnet18").state_dict(), tmp_path / "encoder.pt")
    (finding,) = gather("init", check_initial_weights, configs(init=str(tmp_path / "encoder.pt")))
    assert "set network_name to resnet18" in finding.text
