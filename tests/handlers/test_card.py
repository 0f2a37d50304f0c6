"""What is next to the weights: hashes of all that they saw, and nothing of the machine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from med3d_ext.data import weights_domain
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.handlers.card import WeightsCard


@pytest.fixture
def data(liver_folder, tmp_path) -> PreparedData:
    return PreparedData("lits", str(liver_folder(cases=12)), str(tmp_path / "run"))


@pytest.fixture
def written(new_training, data, tmp_path):
    """Texts of card and facts after a training."""

    def write(epochs: int = 1, val_interval: int = 1, **more) -> tuple[str, str]:
        facts = {"network_name": "resnet10", "init": "/home/me/encoder.pt", "seed": 4, "spatial_size": (16, 16, 8)}
        folder, dataset = str(tmp_path / "models"), SimpleNamespace(data=data.training)

        def handlers(evaluator):
            judge = SimpleNamespace(state=evaluator.state)  # whose cases are not those of the data
            return [WeightsCard(folder, data, dataset, evaluator=judge, **facts, **more)]

        new_training(folder, epochs=epochs, val_interval=val_interval, handlers=handlers).trainer.run()
        card_text, facts_text = ((tmp_path / "models" / name).read_text() for name in ("card.json", "facts.json"))
        return card_text, facts_text

    return write


def test_the_card_names_all_cases_that_the_weights_saw(written, data):
    card = json.loads(written(epochs=3, val_interval=2)[0])
    assert (card["network"], card["init"], card["seed"], card["epochs"]) == ("resnet10", "encoder.pt", 4, 3)
    assert card["domains"] == ["Task03_Liver"] and card["lengths"] == [3]
    for split in ("training", "validation"):
        assert [case["sha256"] for case in card["cases"][split]] == [item["sha256"] for item in data.items(split)]
    seen = {case["sha256"] for cases in card["cases"].values() for case in cases}
    assert not seen & {item["sha256"] for item in data.test} and len(seen) == 11
    assert card["versions"]["torch"] == torch.__version__


def test_inference_reads_the_domain_from_the_facts_and_neither_file_holds_a_path(written, data, tmp_path):
    seen = {"coarse_training": [{"image": "c.nii", "sha256": "c"}]}
    card, facts = written(facts={"coarse_size": [8, 8, 4]}, seen=seen)
    assert "/" not in card + facts
    assert "liver_3.nii.gz" in card and "liver_3" not in facts and len(facts) < 2000
    assert list(json.loads(card)["cases"]) == ["training", "validation", "coarse_training"]
    domain = weights_domain(tmp_path / "models" / "model.pt")
    assert domain["hu_window"] == data.domain["hu_window"]
    assert domain["spacing_mean"] == data.domain["spacing_mean"]
    assert (domain["spatial_size"], domain["coarse_size"]) == ([16, 16, 8], [8, 8, 4])


@pytest.mark.parametrize(("interval", "best"), [(1, {"epoch": 1, "val_mean_dice": 0.1}), (2, None)])
def test_the_best_figure_is_the_evaluators_from_the_first_validation_on(written, interval, best):
    assert json.loads(written(val_interval=interval)[0])["best"] == best
