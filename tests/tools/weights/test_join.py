"""Two files become one cascade: tensors, facts and cases, and equal tensors once."""

from __future__ import annotations

import json

import pytest
import torch
from composed_networks import aspp_network

from med3d_ext.errors import InputError
from med3d_ext.networks import Segmenter, TwoStageSegmenter
from med3d_ext.tools.weights import join

WINDOW = [-125.0, 250.0]


def write(path, network, cases, **facts):
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    domain = {"hu_window": WINDOW, "spatial_size": [32, 32, 16], **facts}
    path.with_name("facts.json").write_text(json.dumps({"domains": {"Task03_Liver": domain}}))
    path.with_name("card.json").write_text(json.dumps({"network": "resnet10", "cases": cases}))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """A cascade whose coarse network is untrained, and a coarse network that stands on the fine encoder."""
    torch.manual_seed(0)
    cascade = TwoStageSegmenter(Segmenter(), aspp_network(widths=(8, 4)))
    coarse = Segmenter()
    coarse.encoder.load_state_dict(cascade.fine.encoder.state_dict())
    fine = write(tmp_path / "fine/model.pt", cascade, {"training": [{"sha256": "f"}]}, coarse_size=None)
    other = write(tmp_path / "coarse/model.pt", coarse, {"training": [{"sha256": "c"}]}, spatial_size=[64, 64, 32])
    return fine, other, cascade, coarse


def load(path):
    return torch.load(path, weights_only=True)


def test_the_file_holds_both_networks_and_loads_into_the_cascade(files, tmp_path):
    fine, other, cascade, coarse = files
    told = join(fine, other, str(tmp_path / "out/model.pt"))
    state = load(tmp_path / "out/model.pt")
    TwoStageSegmenter(Segmenter(), aspp_network(widths=(8, 4))).load_state_dict(state, strict=True)
    assert list(state) == list(cascade.state_dict())
    for name, tensor in cascade.fine.state_dict().items():
        assert torch.equal(state[f"fine.{name}"], tensor)
    for name, tensor in coarse.state_dict().items():
        assert torch.equal(state[f"coarse.{name}"], tensor)
    assert "72 of them in both networks" in told


def test_equal_tensors_are_stored_once_and_each_is_its_own_parameter_again(files, tmp_path):
    fine, other, *_ = files
    join(fine, other, str(tmp_path / "out/model.pt"))
    encoder = sum(each.nbytes for name, each in load(other).items() if name.startswith("encoder."))
    saved = (tmp_path / "fine/model.pt").stat().st_size - (tmp_path / "out/model.pt").stat().st_size
    assert abs(saved - encoder) < 100_000
    network = TwoStageSegmenter(Segmenter(), aspp_network(widths=(8, 4)))
    network.load_state_dict(load(tmp_path / "out/model.pt"))
    with torch.no_grad():
        network.coarse.encoder.conv1.weight.zero_()
    assert network.fine.encoder.conv1.weight.any()


def test_the_facts_and_the_cases_of_both_lie_beside_it(files, tmp_path):
    fine, other, *_ = files
    join(fine, other, str(tmp_path / "out/model.pt"))
    domain = json.loads((tmp_path / "out/facts.json").read_text())["domains"]["Task03_Liver"]
    assert (domain["coarse_size"], domain["spatial_size"]) == ([64, 64, 32], [32, 32, 16])
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["network"] == "resnet10"
    assert card["cases"] == {"training": [{"sha256": "f"}], "coarse_training": [{"sha256": "c"}]}


def test_it_is_refused_before_anything_is_written(files, tmp_path):
    fine, other, *_ = files
    out = str(tmp_path / "out/model.pt")
    with pytest.raises(InputError, match="is not a file of lits_fine"):
        join(other, other, out)
    with pytest.raises(InputError, match="out must end with .pt"):
        join(fine, other, out.replace(".pt", ".safetensors"))
    fingerprint = tmp_path / "coarse/facts.json"
    fingerprint.write_text(fingerprint.read_text().replace("-125.0", "-200.0"))
    with pytest.raises(InputError, match="was trained with the window"):
        join(fine, other, out)
    assert not (tmp_path / "out").exists()


def test_an_existing_file_stays_without_overwrite(files):
    fine, other, *_ = files
    before = load(fine)
    with pytest.raises(InputError, match="exists; give another folder or --overwrite"):
        join(fine, other, fine)
    assert before.keys() == load(fine).keys()
    join(fine, other, fine, overwrite=True)
    assert torch.equal(load(fine)["coarse.head.weight"], load(other)["head.weight"])
