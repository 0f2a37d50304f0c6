"""What is next to the weights: hashes of all that they saw, and nothing of the machine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine

from med3d_ext.data import weights_domain
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.handlers.card import WeightsCard


@pytest.fixture
def data(liver_folder, tmp_path) -> PreparedData:
    return PreparedData("lits", str(liver_folder(cases=12)), str(tmp_path / "run"))


def items() -> list[dict]:
    torch.manual_seed(0)
    return [{"image": torch.rand(1, 4, 4, 4), "label": torch.ones(1, 4, 4, 4)} for _ in range(2)]


def run_training(card: dict, epochs: int = 2, validate_every: int | None = None) -> WeightsCard:
    network = torch.nn.Conv3d(1, 1, 1)
    evaluator = None
    handlers: list = []
    if validate_every:
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(items(), batch_size=1),
            network=torch.nn.Threshold(-1.0, 0.0),
            key_val_metric={"val_dice": MeanDice(output_transform=from_engine(["label", "label"]))},
        )
        handlers.append(ValidationHandler(validate_every, evaluator))
    handler = WeightsCard(**card, evaluator=evaluator)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(items(), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[*handlers, handler],
    ).run()
    return handler


def arguments(data: PreparedData, folder, **changes) -> dict:
    dataset = SimpleNamespace(data=data.training)
    facts = {"network_name": "resnet10", "init": "/home/me/weights/encoder.pt", "seed": 4, "spatial_size": (16, 16, 8)}
    return {"ckpt_dir": str(folder), "data": data, "dataset": dataset, **facts, **changes}


def test_the_card_names_all_cases_that_the_weights_saw(data, tmp_path):
    run_training(arguments(data, tmp_path / "models"), epochs=3)
    card = json.loads((tmp_path / "models" / "card.json").read_text())
    assert (card["network"], card["init"], card["seed"], card["epochs"]) == ("resnet10", "encoder.pt", 4, 3)
    assert card["domains"] == ["Task03_Liver"] and card["best"] is None
    for split in ("training", "validation"):
        assert [case["sha256"] for case in card["cases"][split]] == [item["sha256"] for item in data.items(split)]
    seen = {case["sha256"] for cases in card["cases"].values() for case in cases}
    assert not seen & {item["sha256"] for item in data.test} and len(seen) == 11
    assert card["versions"]["torch"] == torch.__version__


def test_inference_reads_the_domain_from_the_facts_and_neither_file_holds_a_path(data, tmp_path):
    more = {"facts": {"coarse_size": [8, 8, 4]}, "seen": {"coarse_training": [{"image": "c.nii", "sha256": "c"}]}}
    run_training(arguments(data, tmp_path / "models", **more))
    card, facts = ((tmp_path / "models" / name).read_text() for name in ("card.json", "facts.json"))
    assert "/" not in card + facts
    assert "liver_3.nii.gz" in card and "liver_3" not in facts and len(facts) < 2000
    assert list(json.loads(card)["cases"]) == ["training", "validation", "coarse_training"]
    domain = weights_domain(tmp_path / "models" / "model.pt")
    assert domain["hu_window"] == data.domain["hu_window"]
    assert domain["spacing_mean"] == data.domain["spacing_mean"]
    assert (domain["spatial_size"], domain["coarse_size"]) == ([16, 16, 8], [8, 8, 4])


@pytest.mark.parametrize(("interval", "best"), [(1, {"epoch": 1, "val_dice": 1.0}), (2, None)])
def test_the_best_figure_is_the_evaluators_from_the_first_validation_on(data, tmp_path, interval, best):
    run_training(arguments(data, tmp_path / "models"), epochs=1, validate_every=interval)
    assert json.loads((tmp_path / "models" / "card.json").read_text())["best"] == best
