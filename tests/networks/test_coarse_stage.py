"""The coarse stage travels along: whole, untouched, with its grid and its cases, or with a loud sentence why not."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from composed_networks import aspp_network

from med3d_ext.errors import InputError
from med3d_ext.networks import Segmenter, TwoStageSegmenter
from med3d_ext.weights.coarse import CoarseRestart, CoarseStage
from med3d_ext.weights.initial import InitialWeights

WINDOW = [-200.0, 250.0]


def two_stages(coarse: str = "resnet10", stride: int = 8) -> TwoStageSegmenter:
    return TwoStageSegmenter(Segmenter(coarse, output_stride=stride), aspp_network(widths=(8, 4)))


@pytest.fixture
def trained(tmp_path):
    """Writes what a training of a coarse network, or of a cascade, leaves: ``write(network, folder, **facts)``."""

    def write(network: torch.nn.Module, folder: str = "lits_coarse/models", **facts):
        path = tmp_path / folder / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
        domain = {"hu_window": WINDOW, "spatial_size": [48, 40, 16], **facts}
        path.with_name("facts.json").write_text(json.dumps({"domains": {"Task03_Liver": domain}}))
        cases = {"training": [{"image": "a.nii", "sha256": "a" * 64}], "validation": [{"image": "b", "sha256": "b"}]}
        if "coarse_size" in facts:
            cases = {**cases, "coarse_training": [{"image": "c", "sha256": "c"}]}
        path.with_name("card.json").write_text(json.dumps({"cases": cases}))
        return path

    return write


def equal(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(each, other.state_dict()[name]) for name, each in network.state_dict().items())


def test_the_coarse_weights_go_in_with_their_grid_and_their_cases(trained):
    coarse, network = Segmenter(), two_stages()
    stage = CoarseStage(network, trained(coarse), WINDOW)
    assert equal(network.coarse, coarse) and stage.network is network
    assert stage.facts == {"coarse_size": [48, 40, 16], "coarse_output_stride": 8}
    assert [case["image"] for cases in stage.seen.values() for case in cases] == ["a.nii", "b"]
    assert list(stage.seen) == ["coarse_training", "coarse_validation"]


def test_the_coarse_stage_of_a_cascade_is_taken_from_its_file(trained):
    source = two_stages()
    path = trained(source, coarse_size=[32, 32, 8], coarse_output_stride=8)
    network = two_stages()
    stage = CoarseStage(network, path, WINDOW)
    assert equal(network.coarse, source.coarse) and not equal(network.fine, source.fine)
    assert stage.facts["coarse_size"] == [32, 32, 8]
    assert stage.seen == {"coarse_training": [{"image": "c", "sha256": "c"}]}


def test_nothing_of_the_coarse_stage_is_trained(trained):
    network = two_stages()
    CoarseStage(network, trained(Segmenter()), WINDOW)
    initial = InitialWeights(network, "scratch")
    trained_ones = {id(each) for group in initial.parameter_groups() for each in group["params"]}
    assert trained_ones == {id(each) for each in network.fine.parameters()}
    assert not any(each.requires_grad for each in network.coarse.parameters())


@pytest.mark.parametrize("weights", [None, "lits_coarse"])
def test_without_coarse_weights_the_log_is_loud_and_the_facts_say_so(weights, tmp_path, caplog):
    stage = CoarseStage(two_stages(), weights, WINDOW, tmp_path / "lits_fine")
    assert stage.facts == {"coarse_size": None} and stage.seen == {}
    assert "NO COARSE STAGE" in caplog.text and "--coarse_weights PATH" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_test_case_that_the_coarse_stage_has_seen_is_told(trained, caplog):
    items = [{"sha256": "a" * 64}, {"sha256": "z"}]
    CoarseStage(two_stages(), trained(Segmenter()), WINDOW, test_items=items)
    assert "has seen 1 of the 2 test cases" in caplog.text


def test_a_continued_training_gets_the_coarse_weights_again(trained):
    coarse, network = Segmenter(), two_stages()
    stage = CoarseStage(network, trained(coarse), WINDOW)
    network.load_state_dict(two_stages().state_dict())  # as the checkpoint of an earlier command would
    CoarseRestart(stage)(None)
    assert equal(network.coarse, coarse)


def test_the_bundle_next_to_this_one_is_found_by_its_name_and_its_trained_weights_first(trained, tmp_path):
    for folder in ("lits_coarse/weights", "lits_coarse/models"):
        coarse, network = Segmenter(), two_stages()
        trained(coarse, folder)
        CoarseStage(network, "lits_coarse", WINDOW, tmp_path / "lits_fine")
        assert equal(network.coarse, coarse)


@pytest.mark.parametrize(
    ("source", "facts", "named"),
    [
        (Segmenter, {"hu_window": [-125.0, 250.0]}, r"window \[-125.0, 250.0\] HU.*--hu_window"),
        (lambda: Segmenter("resnet18"), {}, r"\(resnet18 with shortcut A .*--coarse_network_name"),
        (lambda: Segmenter(output_stride=32), {"output_stride": 32}, "output stride 32.*--coarse_output_stride"),
        (two_stages, {"coarse_size": None}, "holds no trained coarse network"),
    ],
)
def test_what_does_not_fit_is_refused_as_a_file_and_told_of_a_bundle(source, facts, named, trained, tmp_path, caplog):
    path = trained(source(), **facts)
    with pytest.raises(InputError, match=named):
        CoarseStage(two_stages(), path, WINDOW)
    network = two_stages()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    assert CoarseStage(network, "lits_coarse", WINDOW, tmp_path / "lits_fine").facts == {"coarse_size": None}
    assert "NO COARSE STAGE" in caplog.text and re.search(named, caplog.text)
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())


def test_what_differs_by_rounding_or_is_set_alike_fits(trained):
    path = trained(Segmenter(output_stride=32), output_stride=32, hu_window=[-200.0, 249.99999])
    CoarseStage(two_stages(stride=32), path, WINDOW)


@pytest.mark.parametrize("weights", ["nowhere.pt", "folder/model"])
def test_a_path_without_a_file_is_refused(weights):
    with pytest.raises(InputError, match=f"'{weights}' is not a file"):
        CoarseStage(two_stages(), weights, WINDOW)
