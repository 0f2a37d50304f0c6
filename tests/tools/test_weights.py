"""Two files become one cascade, and released weights are small, of the same bytes and nearly what was trained."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from composed_networks import aspp_network
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.io.facts import read_facts
from med3d_ext.networks import Segmenter, TwoStageSegmenter
from med3d_ext.tools import cli
from med3d_ext.tools.weights import join, released_bytes, rounded, saved

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


def small_network():
    return nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 16, 3))


def as_trained(network, folder):
    """Weights as a training leaves them."""
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "facts.json").write_text('{"domains": {"a": {"classes": {"0": "background"}}}}')
    (folder / "card.json").write_text('{"network": "resnet10"}')
    return folder / "model.pt"


def release(*words):
    return cli.main(["weights", "release", *map(str, words)])


@pytest.fixture(scope="module")
def network():
    return Segmenter("resnet10")


@pytest.fixture(scope="module")
def state(network, tmp_path_factory):
    """What plain torch.load makes of the network's released weights, and the share of its bytes."""
    folder = tmp_path_factory.mktemp("network")
    path = as_trained(network, folder)
    assert release(path, folder / "released" / "model.pt") == 0
    released = folder / "released" / "model.pt"
    assert released.stat().st_size < 0.43 * path.stat().st_size
    return torch.load(released, weights_only=True)


@pytest.fixture
def trained(tmp_path):
    (tmp_path / "trained").mkdir()
    return as_trained(small_network(), tmp_path / "trained")


def loaded(content, folder):
    (folder / "loaded.pt").write_bytes(content)
    return torch.load(folder / "loaded.pt", weights_only=True)


def test_rounding_keeps_nine_bits_of_every_size_of_number():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 8, 3, 3, 3, generator=generator) * 2.0 ** torch.arange(-20, 12).reshape(4, 8, 1, 1, 1)
    error = (rounded(values).float() - values).abs()
    assert bool((error <= torch.maximum(values.abs() * 2**-9, torch.tensor(2.0**-24))).all())
    assert error.max() > 0
    assert torch.equal(rounded(rounded(values)), rounded(values))


def test_rounding_goes_to_the_nearest_and_ties_to_the_even():
    step = 2.0**-8
    given = torch.tensor([1 + step / 2, 1 + 1.5 * step, 1 + 0.6 * step, -1 - 0.4 * step, 0.0]).reshape(1, 1, 1, 1, 5)
    wanted = torch.tensor([1, 1 + 2 * step, 1 + step, -1, 0]).reshape(given.shape)
    assert torch.equal(rounded(given).float(), wanted)


def test_vectors_counters_and_values_beyond_half_precision_stay_as_they_are():
    large = torch.full((1, 1, 1, 1, 1), 1e6)
    for tensor in (torch.randn(7), torch.tensor(3), torch.randn(2, 3), large):
        assert rounded(tensor) is tensor


def test_the_network_loads_what_was_released(state, network):
    other = Segmenter("resnet10")
    other.load_state_dict(state)
    before = network.state_dict()
    for name, value in other.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=2**-9, atol=2**-24)
        if before[name].dim() < 2:
            assert torch.equal(value, before[name]), name
            assert state[name].dtype == before[name].dtype
    assert state["encoder.conv1.weight"].dtype == torch.float16


def test_a_second_release_has_the_same_bytes(trained, tmp_path):
    for folder in ("a", "b"):
        release(trained, tmp_path / folder / "model.pt")
    release(tmp_path / "a" / "model.pt", tmp_path / "c" / "model.pt")
    contents = {(tmp_path / folder / "model.pt").read_bytes() for folder in "abc"}
    assert len(contents) == 1
    with zipfile.ZipFile(tmp_path / "a" / "model.pt") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_equal_tensors_are_stored_once_and_still_shared_when_loaded(tmp_path):
    cascade = TwoStageSegmenter(small_network(), small_network())
    cascade.fine.load_state_dict(cascade.coarse.state_dict())  # equal values in storages of their own
    content = released_bytes(cascade.state_dict())
    assert len(content) < 1.2 * len(released_bytes(cascade.coarse.state_dict()))
    state = loaded(content, tmp_path)
    first, second = (state[f"{stage}.0.weight"] for stage in ("coarse", "fine"))
    assert first.data_ptr() == second.data_ptr()
    TwoStageSegmenter(small_network(), small_network()).load_state_dict(state)


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path):
    whole = torch.arange(100_000.0)
    content = saved({"x": whole[5:7], "y": whole[::50_000]})
    assert len(content) < 5_000
    state = loaded(content, tmp_path)
    assert torch.equal(state["x"], whole[5:7])
    assert torch.equal(state["y"], whole[::50_000])


def test_facts_and_card_come_along_and_the_card_says_what_was_rounded(trained, tmp_path):
    release(trained, tmp_path / "new" / "model.pt")
    assert read_facts(tmp_path / "new") == read_facts(trained.parent)
    card = json.loads((tmp_path / "new" / "card.json").read_text())
    assert card == {
        "network": "resnet10",
        "precision": "convolutions rounded to 8 bits of mantissa, all else as trained",
    }


def test_what_is_missing_is_said(trained, tmp_path, capsys):
    alone = tmp_path / "alone" / "model.pt"
    alone.parent.mkdir()
    alone.write_bytes(trained.read_bytes())
    assert release(alone, tmp_path / "new" / "model.pt") == 0
    said = capsys.readouterr().out
    assert f"'{tmp_path / 'new' / 'model.pt'}': " in said
    assert f"'{alone.parent / 'card.json'}' is missing: put it there" in said


def test_nothing_is_replaced_unasked(trained, tmp_path, capsys):
    out = tmp_path / "out" / "model.pt"
    out.parent.mkdir()
    out.with_name("card.json").write_text("kept")
    assert release(trained, out) == 2
    assert f"'{out.with_name('card.json')}' exists; give another folder or --overwrite." in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["card.json"]
    assert release(trained, out, "--overwrite") == 0
    assert release(trained, out.with_name("model.bin")) == 2
    assert "out must end with .pt" in capsys.readouterr().err
