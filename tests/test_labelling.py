"""A training that MONAI Label starts: images and labels come from the server, all else from the weights it serves."""

from __future__ import annotations

import json

import pytest
import torch

from med3d_ext.data.fingerprint import sha256
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.handlers.card import WeightsCard
from med3d_ext.networks import Segmenter
from med3d_ext.weights.initial import InitialWeights
from med3d_ext.weights.labelling import weights_to_continue

FACTS = {"hu_window": [-125, 250], "classes": {"0": "background", "1": "liver"}}


@pytest.fixture
def bundle(tmp_path):
    """A bundle with weights, as a server serves it."""
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    torch.save(Segmenter("resnet10").state_dict(), models / "model.pt")
    (models / "facts.json").write_text(json.dumps({"domains": {"Task03_Liver": FACTS}}))
    old = {"image": "old.nii.gz", "domain": "Task03_Liver", "sha256": "0" * 64}
    (models / "card.json").write_text(json.dumps({"cases": {"training": [old], "validation": []}}))
    return tmp_path / "bundle"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """What a process of a labelling server has in its environment."""
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))


@pytest.fixture
def items(liver_folder):
    """Two labeled images as a server sends them."""
    folder = liver_folder(cases=2)
    pairs = zip(sorted((folder / "imagesTr").iterdir()), sorted((folder / "labelsTr").iterdir()))
    return [{"image": str(image), "label": str(label)} for image, label in pairs]


def seen(bundle):
    """What the initial weights of a server's training have seen."""
    return InitialWeights(Segmenter("resnet10"), "med3d", bundle).seen


def prepared(bundle):
    return PreparedData("lits", None, str(bundle / "eval"), bundle_root=bundle)


def test_outside_a_server_nothing_is_gone_on_with(bundle, monkeypatch):
    monkeypatch.delenv("MONAI_LABEL_APP_DIR", raising=False)
    assert weights_to_continue(bundle) is None


def test_in_a_server_the_weights_need_their_facts(bundle, server):
    assert weights_to_continue(bundle) == bundle / "models" / "model.pt"
    assert weights_to_continue(None) is None
    (bundle / "models" / "facts.json").unlink()
    assert weights_to_continue(bundle) is None


def test_the_facts_are_those_of_the_served_weights_and_there_are_no_cases(bundle, server):
    data = prepared(bundle)
    assert data.domain["hu_window"] == [-125, 250]
    assert data.training == data.validation == []
    assert not (bundle / "eval").exists()


def test_data_that_were_asked_for_win(bundle, server, liver_folder):
    data = PreparedData("lits", str(liver_folder(cases=3)), str(bundle / "eval"), bundle_root=bundle)
    assert len(data.training) > 0 and data.cases


def test_the_identity_changes_with_the_images_and_with_the_labels(bundle, server, items):
    data = prepared(bundle)
    first = data.identity_of(items)
    assert data.identity_of(items[::-1]) == first
    assert data.identity_of(items[:1]) != first
    corrected = [{**items[0], "label": items[1]["label"]}, items[1]]
    assert data.identity_of(corrected) != first


def test_a_training_goes_on_from_the_whole_network_at_the_rate_for_pretrained_weights(bundle, server):
    network = Segmenter("resnet10")
    initial = InitialWeights(network, "med3d", bundle)  # no released encoder lies beside a packed bundle
    assert initial.learning_rate == 0.001
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_weights_of_another_network_are_refused_with_a_repair(bundle, server):
    with pytest.raises(InputError, match="set network_name"):
        InitialWeights(Segmenter("resnet18"), "scratch", bundle)


class Engine:
    """What a card asks of a trainer."""

    class state:
        epoch, rank = 1, 0


class Dataset:
    """A data set's list of items."""

    def __init__(self, data):
        self.data = data


class Evaluator:
    """What a card asks of an evaluator of a server's training."""

    class state:
        key_metric_name, best_metric_epoch, best_metric = None, -1, 0.0

    def __init__(self, data):
        self.data_loader = type("Loader", (), {"dataset": Dataset(data)})


def test_the_card_names_the_old_cases_and_the_servers_with_their_hashes(bundle, server, items):
    card = WeightsCard(
        str(bundle / "new"), prepared(bundle), Dataset(items[:1]), "resnet10", "scratch", [8, 8, 8],
        evaluator=Evaluator(items[1:]), seen=seen(bundle),
    )  # fmt: skip
    card.write_card(Engine())
    cases = json.loads((bundle / "new" / "card.json").read_text())["cases"]
    assert [case["image"] for case in cases["training"]] == ["old.nii.gz", "liver_0.nii.gz"]
    assert cases["training"][1]["sha256"] == sha256(items[0]["image"])
    assert [case["image"] for case in cases["validation"]] == ["liver_1.nii.gz"]


def test_a_case_that_comes_again_is_named_once(bundle, server, items):
    (bundle / "models" / "card.json").write_text(
        json.dumps({"cases": {"training": [{"image": "old name", "sha256": sha256(items[0]["image"])}]}})
    )
    card = WeightsCard(
        str(bundle / "new"), prepared(bundle), Dataset(items), "resnet10", "scratch", [8, 8, 8], seen=seen(bundle)
    )
    card.write_card(Engine())
    cases = json.loads((bundle / "new" / "card.json").read_text())["cases"]["training"]
    assert [case["image"] for case in cases] == ["liver_0.nii.gz", "liver_1.nii.gz"]


def test_the_grid_is_that_of_the_served_weights(bundle, monkeypatch, liver_folder, tmp_path):
    """The phantoms' small grid, a default without data, would silently become that of the new weights."""
    facts = {**FACTS, "spatial_size": [160, 160, 96]}
    (bundle / "models" / "facts.json").write_text(json.dumps({"domains": {"Task03_Liver": facts}}))
    own = PreparedData("lits", str(liver_folder(cases=4)), str(tmp_path / "run"), bundle_root=bundle)
    assert own.grid([64, 64, 48]) == [64, 64, 48]
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))
    assert prepared(bundle).grid([64, 64, 48]) == [160, 160, 96]
